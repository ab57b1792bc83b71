"""The losses of a step's four phases, each of one part of the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimic3d.config import Config
from mimic3d.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from mimic3d.losses.density import density_smoothness
from mimic3d.networks.backbone import TriPlanes
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator, resize_antialiased
from mimic3d.networks.generator import Generator, View
from mimic3d.rendering.patches import Windows, look_through, patch_uv
from mimic3d.training.draws import Look, Views

Losses = tuple[Tensor, dict[str, Tensor]]
"""What a phase returns: the loss whose gradients are to be taken, and scalars to log."""


class Moment(NamedTuple):
    """What a place in the run decides."""

    stage: int
    blur_sigma: float


class Reals(NamedTuple):
    """Real images of the data set."""

    image: Tensor
    """(N, 3, R, R) in [-1, 1]."""
    camera: Tensor
    """(N, 25)."""
    weight: Tensor | None
    """(N,), how much each counts, 1 on average; equally when None."""

    def part(self, rows: slice) -> Reals:
        """Those of some samples."""
        weight = None if self.weight is None else self.weight[rows]
        return Reals(self.image[rows], self.camera[rows], weight)


class Phases:
    """The losses, as functions of what was drawn; the networks they train are the trainer's."""

    def __init__(
        self,
        config: Config,
        generator: Generator,
        dual: DualDiscriminator,
        patch: PatchDiscriminator,
        perceptual: nn.Module,
    ) -> None:
        self.config, self.has_2d = config, config.model.branch_2d
        self.generator, self.dual, self.patch, self.perceptual = generator, dual, patch, perceptual

    def generator_main(self, now: Moment, views: Views, look: Look) -> Losses:
        """Both adversarial losses and imitation."""
        imitation = self.config.imitation
        w = self.generator.mapping(views.z, views.conditioning)
        planes = self.generator.planes(w, detail=now.stage == 2, noise="random")
        view = self.generator.branch_2d(planes, w, views.camera, stochastic=True) if self.has_2d else None
        losses, log = [], {}
        if view is not None:
            logits = self._judge(now, view.image, view.raw, views.camera, look)
            losses.append(generator_loss(logits))
            log |= {"loss/generator_2d": losses[0], "logits/fake_2d": logits.mean()}
        if now.stage == 2:
            patch = self._render_patch(planes, view, views.camera, look.windows)
            if view is not None:
                target = look_through(view.image.detach(), look.windows, self.config.patch_resolution)
                log["loss/imitation"] = self.perceptual(patch, target).mean()
                losses.append(imitation.lpips_weight * log["loss/imitation"])
            logits = self._judge_patch(patch, look)
            log |= {"loss/generator_patch": generator_loss(logits), "logits/fake_patch": logits.mean()}
            losses.append(imitation.patch_gan_weight * log["loss/generator_patch"])
        return sum(losses), log

    def generator_density(self, now: Moment, views: Views) -> Losses:
        """Smoothness of the density, as strong as its interval is long."""
        regular = self.config.regularization
        w = self.generator.mapping(views.z, views.conditioning)
        planes = self.generator.planes(w, detail=now.stage == 2, noise="random")
        distance = regular.density_distance_stage1 if now.stage == 1 else regular.density_distance_stage2
        roughness = density_smoothness(self.generator, planes, regular.density_points, distance)
        loss = roughness * regular.density_weight * regular.density_interval
        return loss, {"loss/density": roughness}

    def discriminator_main(
        self, now: Moment, reals: Reals, views: Views, fake_look: Look, real_look: Look
    ) -> Losses:
        """Both discriminators on generated and real images."""
        with torch.no_grad():
            w = self.generator.mapping(views.z, views.conditioning)
            planes = self.generator.planes(w, detail=now.stage == 2, noise="random")
            view = self.generator.branch_2d(planes, w, views.camera, stochastic=True) if self.has_2d else None
        losses, log = [], {}
        if view is not None:
            seen = (
                self._seen(now, view.image, view.raw, fake_look),
                self._seen(now, reals.image, self._raw_of(reals.image), real_look),
            )
            # Both in one pass: what a pass costs besides its arithmetic is paid once.
            image, raw = (torch.cat(kind) for kind in zip(*seen, strict=True))
            logits = self.dual(image, raw, torch.cat([views.camera, reals.camera]), sets=2)
            fake_logits, real_logits = logits.chunk(2)
            losses.append(discriminator_loss(fake_logits, real_logits, reals.weight))
            log |= {"loss/discriminator_2d": losses[0], "logits/real_2d": real_logits.mean()}
            log["logits/real_sign"] = real_logits.sign().mean()
        if now.stage == 2:
            with torch.no_grad():
                fake = self._render_patch(planes, view, views.camera, fake_look.windows)
            real = look_through(reals.image, real_look.windows, self.config.patch_resolution)
            labels = [self._label(look) for look in (fake_look, real_look)]
            logits = self.patch(torch.cat([fake, real]), torch.cat(labels), sets=2)
            fake_logits, real_logits = logits.chunk(2)
            losses.append(discriminator_loss(fake_logits, real_logits, reals.weight))
            log |= {"loss/discriminator_patch": losses[-1], "logits/real_patch": real_logits.mean()}
        return sum(losses), log

    def discriminator_r1(self, now: Moment, reals: Reals, look: Look) -> Losses:
        """R1 on all inputs of both discriminators, as strong as its interval is long."""
        regular = self.config.regularization
        losses, log = [], {}
        if self.has_2d:
            image = reals.image.detach().requires_grad_()
            raw = self._raw_of(reals.image).requires_grad_()
            logits = self._judge(now, image, raw, reals.camera, look)
            log["loss/r1_2d"] = r1_penalty(logits, [image, raw]).mean()
            losses.append(log["loss/r1_2d"] * (regular.r1_gamma / 2))
        if now.stage == 2:
            patch = look_through(reals.image, look.windows, self.config.patch_resolution).requires_grad_()
            log["loss/r1_patch"] = r1_penalty(self._judge_patch(patch, look), [patch]).mean()
            losses.append(log["loss/r1_patch"] * (regular.r1_gamma_patch / 2))
        return sum(losses) * regular.r1_interval, log

    def _render_patch(self, planes: TriPlanes, view: View | None, camera: Tensor, windows: Windows) -> Tensor:
        """What the 3D branch shows in windows of the image of which the 2D branch has drawn a `view`."""
        size = self.config.patch_resolution
        uv = patch_uv(windows.corners, size, self.config.model.image_resolution, windows.sides)
        light = None if view is None else view.windows
        colours = self.generator.branch_3d(planes, camera, uv, stochastic=True, windows=light).features
        return colours.transpose(1, 2).unflatten(-1, (size, size))

    def _judge(self, now: Moment, image: Tensor, raw: Tensor, camera: Tensor, look: Look) -> Tensor:
        return self.dual(*self._seen(now, image, raw, look), camera)

    def _seen(self, now: Moment, image: Tensor, raw: Tensor, look: Look) -> tuple[Tensor, Tensor]:
        """What the dual discriminator is shown of images (N, 3, R, R) and their raw renders (N, 3, r, r)."""
        image = gaussian_blur(image, now.blur_sigma)
        if look.augmentation.warp is not None:
            pair = torch.cat([image, resize_antialiased(raw, image.shape[-1])], dim=1)
            image, raw = look.augmentation.apply(pair).split(3, dim=1)
        return image, raw

    def _judge_patch(self, patch: Tensor, look: Look) -> Tensor:
        return self.patch(patch, self._label(look))

    def _label(self, look: Look) -> Tensor:
        return look.windows.label(self.config.model.image_resolution)

    def _raw_of(self, real: Tensor) -> Tensor:
        return resize_antialiased(real, self.config.model.neural_rendering_resolution)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """(N, C, H, W) convolved with a Gaussian of `sigma` pixels that is cut at 3 sigma."""
    radius = int(sigma * 3)
    if radius == 0:
        return image
    taps = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype).div(sigma)
    taps = taps.square().mul(-0.5).exp()
    taps = taps / taps.sum()
    kernel = taps.expand(image.shape[1], 1, 1, -1)
    image = F.conv2d(image, kernel, padding=(0, radius), groups=image.shape[1])
    return F.conv2d(image, kernel.transpose(2, 3), padding=(radius, 0), groups=image.shape[1])
