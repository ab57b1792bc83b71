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
from mimic3d.networks.generator import Generator
from mimic3d.rendering.patches import Windows, look_through, patch_uv
from mimic3d.training.draws import Views

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
        self.config = config
        self.generator, self.dual, self.patch, self.perceptual = generator, dual, patch, perceptual

    def generator_main(self, now: Moment, views: Views, windows: Windows) -> Losses:
        """Both adversarial losses and imitation."""
        imitation = self.config.imitation
        w = self.generator.mapping(views.z, views.conditioning)
        planes = self.generator.planes(w, detail=now.stage == 2, noise="random")
        view = self.generator.branch_2d(planes, w, views.camera, stochastic=True)
        logits = self._judge(now, view.image, view.raw, views.camera)
        loss = adversarial = generator_loss(logits)
        log = {"loss/generator_2d": adversarial, "logits/fake_2d": logits.mean()}
        if now.stage == 2:
            patch = self._render_patch(planes, views.camera, windows)
            target = look_through(view.image.detach(), windows, self.config.patch_resolution)
            perceptual = self.perceptual(patch, target).mean()
            patch_logits = self.patch(patch)
            patch_adversarial = generator_loss(patch_logits)
            loss = (
                adversarial
                + imitation.lpips_weight * perceptual
                + imitation.patch_gan_weight * patch_adversarial
            )
            log |= {
                "loss/imitation": perceptual,
                "loss/generator_patch": patch_adversarial,
                "logits/fake_patch": patch_logits.mean(),
            }
        return loss, log

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
        self, now: Moment, reals: Reals, views: Views, fake_windows: Windows, real_windows: Windows
    ) -> Losses:
        """Both discriminators on generated and real images."""
        with torch.no_grad():
            w = self.generator.mapping(views.z, views.conditioning)
            planes = self.generator.planes(w, detail=now.stage == 2, noise="random")
            view = self.generator.branch_2d(planes, w, views.camera, stochastic=True)
        fake_logits = self._judge(now, view.image, view.raw, views.camera)
        real_logits = self._judge(now, reals.image, self._raw_of(reals.image), reals.camera)
        loss = discriminator_loss(fake_logits, real_logits, reals.weight)
        log = {"loss/discriminator_2d": loss, "logits/real_2d": real_logits.mean()}
        if now.stage == 2:
            with torch.no_grad():
                patch = self._render_patch(planes, views.camera, fake_windows)
            fake_logits = self.patch(patch)
            real_logits = self.patch(look_through(reals.image, real_windows, self.config.patch_resolution))
            patch_loss = discriminator_loss(fake_logits, real_logits, reals.weight)
            loss = loss + patch_loss
            log |= {"loss/discriminator_patch": patch_loss, "logits/real_patch": real_logits.mean()}
        return loss, log

    def discriminator_r1(self, now: Moment, reals: Reals, windows: Windows) -> Losses:
        """R1 on all inputs of both discriminators, as strong as its interval is long."""
        regular = self.config.regularization
        image = reals.image.detach().requires_grad_()
        raw = self._raw_of(reals.image).requires_grad_()
        penalty = r1_penalty(self._judge(now, image, raw, reals.camera), [image, raw]).mean()
        loss = penalty * (regular.r1_gamma / 2)
        log = {"loss/r1_2d": penalty}
        if now.stage == 2:
            patch = look_through(reals.image, windows, self.config.patch_resolution).requires_grad_()
            patch_penalty = r1_penalty(self.patch(patch), [patch]).mean()
            loss = loss + patch_penalty * (regular.r1_gamma_patch / 2)
            log["loss/r1_patch"] = patch_penalty
        return loss * regular.r1_interval, log

    def _render_patch(self, planes: TriPlanes, camera: Tensor, windows: Windows) -> Tensor:
        size = self.config.patch_resolution
        uv = patch_uv(windows.corners, size, self.config.model.image_resolution, windows.sides)
        colours = self.generator.branch_3d(planes, camera, uv, stochastic=True).features
        return colours.transpose(1, 2).unflatten(-1, (size, size))

    def _judge(self, now: Moment, image: Tensor, raw: Tensor, camera: Tensor) -> Tensor:
        return self.dual(gaussian_blur(image, now.blur_sigma), raw, camera)

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
