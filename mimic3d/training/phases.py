"""The losses of a step's phases (3D-to-2D imitation, Chen et al., 2023; EG3D's supplement).

A phase is a function of the inputs that were sampled for it. It returns a loss, whose gradients one optimiser
then takes, and scalars to log. Each docstring begins with the network that the phase trains.
"""

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
from mimic3d.rendering.patches import PatchWindows, extract_patches, patch_uv
from mimic3d.training.augmentation import Augmentation
from mimic3d.training.sampling import GeneratorInputs, PatchInputs

Losses = tuple[Tensor, dict[str, Tensor]]
"""What a phase returns: the loss whose gradients are to be taken, and scalars to log."""


class PhaseContext(NamedTuple):
    """The values that the schedule sets for all phases of a step."""

    stage: int
    """1 or 2."""
    blur_sigma: float
    """σ of the blur of all that the discriminators see, in pixels."""


class Reals(NamedTuple):
    """Real images of the data set."""

    image: Tensor
    """(N, 3, R, R) in [-1, 1]."""
    camera: Tensor
    """(N, 25)."""
    weight: Tensor | None
    """(N,), the weight of each in the losses, 1 on average; equal when None."""

    def part(self, rows: slice | Tensor) -> Reals:
        """The reals of some samples."""
        weight = None if self.weight is None else self.weight[rows]
        return Reals(self.image[rows], self.camera[rows], weight)


class Fakes(NamedTuple):
    """Generated scenes, without gradients."""

    planes: TriPlanes
    view: View | None
    """The 2D branch's images of them; None where they were not rendered."""


class Phases:
    """The losses of all phases, as functions of what was sampled; the trainer owns the networks."""

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

    def generator_main(
        self,
        context: PhaseContext,
        inputs: GeneratorInputs,
        augmentation: Augmentation,
        patches: PatchInputs,
    ) -> Losses:
        """G: both adversarial losses and imitation; `augmentation` is of D's images, `patches` of stage 2."""
        imitation = self.config.imitation
        w = self.generator.mapping(inputs.z, inputs.conditioning)
        planes = self.generator.planes(w, detail=context.stage == 2, noise="random")
        view = self.generator.branch_2d(planes, w, inputs.camera, stochastic=True) if self.has_2d else None
        losses: list[Tensor] = []
        log: dict[str, Tensor] = {}
        if view is not None:
            pair = self._dual_inputs(context, view.image, view.raw, augmentation)
            logits = self.dual(*pair, inputs.camera)
            losses.append(generator_loss(logits))
            log |= {"loss/generator_2d": losses[0], "logits/fake_2d": logits.mean()}
        if context.stage == 2:
            patch = self._render_patch(planes, view, inputs.camera, patches.windows)
            if view is not None:
                target = extract_patches(view.image.detach(), patches.windows, self.config.patch_resolution)
                log["loss/imitation"] = self.perceptual(patch, target).mean()
                losses.append(imitation.lpips_weight * log["loss/imitation"])
            logits = self.patch(self._patch_input(context, patch, patches), self._label(patches))
            log |= {"loss/generator_patch": generator_loss(logits), "logits/fake_patch": logits.mean()}
            losses.append(imitation.patch_gan_weight * log["loss/generator_patch"])
        return sum(losses[1:], start=losses[0]), log

    def generator_density(self, context: PhaseContext, inputs: GeneratorInputs) -> Losses:
        """G: smoothness of the density, times the phase's interval."""
        regular = self.config.regularization
        w = self.generator.mapping(inputs.z, inputs.conditioning)
        planes = self.generator.planes(w, detail=context.stage == 2, noise="random")
        distance = regular.density_distance_stage1 if context.stage == 1 else regular.density_distance_stage2
        roughness = density_smoothness(self.generator, planes, regular.density_points, distance)
        loss = roughness * regular.density_weight * regular.density_interval
        return loss, {"loss/density": roughness}

    def discriminator_main(
        self,
        context: PhaseContext,
        reals: Reals,
        inputs: GeneratorInputs,
        fake_augmentation: Augmentation,
        real_augmentation: Augmentation,
    ) -> Losses:
        """D: generated and real images."""
        fakes = self._fakes(context, inputs, detail=False)
        return self._dual_loss(context, reals, fakes, inputs, fake_augmentation, real_augmentation)

    def discriminator_r1(self, context: PhaseContext, reals: Reals, augmentation: Augmentation) -> Losses:
        """D: R1 with respect to the image and the raw that it is given, times the phase's interval."""
        regular = self.config.regularization
        pair = self._real_inputs(context, reals, augmentation)
        image, raw = (each.detach().requires_grad_() for each in pair)
        logits = self.dual(image, raw, reals.camera)
        penalty = r1_penalty(logits, [image, raw]).mean()
        log = {"loss/r1_2d": penalty, "logits/real_sign": logits.sign().mean()}
        return penalty * (regular.r1_gamma / 2) * regular.r1_interval, log

    def patch_discriminator_main(
        self,
        context: PhaseContext,
        reals: Reals,
        inputs: GeneratorInputs,
        fake_patches: PatchInputs,
        real_patches: PatchInputs,
    ) -> Losses:
        """D_patch: patches of the 3D branch and of real images."""
        fakes = self._fakes(context, inputs, image=False)
        return self._patch_loss(context, reals, fakes, inputs, fake_patches, real_patches)

    def patch_discriminator_r1(self, context: PhaseContext, reals: Reals, patches: PatchInputs) -> Losses:
        """D_patch: R1 with respect to the patch that it is given, times the phase's interval."""
        regular = self.config.regularization
        patch = extract_patches(reals.image, patches.windows, self.config.patch_resolution)
        patch = self._patch_input(context, patch, patches).detach().requires_grad_()
        penalty = r1_penalty(self.patch(patch, self._label(patches)), [patch]).mean()
        loss = penalty * (regular.r1_gamma_patch / 2) * regular.r1_interval
        return loss, {"loss/r1_patch": penalty}

    def discriminators_main(
        self,
        context: PhaseContext,
        reals: Reals,
        inputs: GeneratorInputs,
        fake_augmentation: Augmentation,
        real_augmentation: Augmentation,
        fake_patches: PatchInputs,
        real_patches: PatchInputs,
    ) -> Losses:
        """D and D_patch on the same generated scenes (`imitation.share_fakes`): one render for both."""
        fakes = self._fakes(context, inputs)
        dual, log = self._dual_loss(context, reals, fakes, inputs, fake_augmentation, real_augmentation)
        patch, patch_log = self._patch_loss(context, reals, fakes, inputs, fake_patches, real_patches)
        return dual + patch, log | patch_log

    def _dual_loss(
        self,
        context: PhaseContext,
        reals: Reals,
        fakes: Fakes,
        inputs: GeneratorInputs,
        fake_augmentation: Augmentation,
        real_augmentation: Augmentation,
    ) -> Losses:
        assert fakes.view is not None
        pairs = (
            self._dual_inputs(context, fakes.view.image, fakes.view.raw, fake_augmentation),
            self._real_inputs(context, reals, real_augmentation),
        )
        # Both in one pass: what a pass costs besides its arithmetic is paid once.
        image, raw = (torch.cat(kind) for kind in zip(*pairs, strict=True))
        logits = self.dual(image, raw, torch.cat([inputs.camera, reals.camera]), sets=2)
        fake_logits, real_logits = logits.chunk(2)
        loss = discriminator_loss(fake_logits, real_logits, reals.weight)
        log = {"loss/discriminator_2d": loss, "logits/real_2d": real_logits.mean()}
        return loss, log | {"logits/real_sign": real_logits.sign().mean()}

    def _patch_loss(
        self,
        context: PhaseContext,
        reals: Reals,
        fakes: Fakes,
        inputs: GeneratorInputs,
        fake_patches: PatchInputs,
        real_patches: PatchInputs,
    ) -> Losses:
        with torch.no_grad():
            fake = self._render_patch(fakes.planes, fakes.view, inputs.camera, fake_patches.windows)
        real = extract_patches(reals.image, real_patches.windows, self.config.patch_resolution)
        pairs = (fake, fake_patches), (real, real_patches)
        patch = torch.cat([self._patch_input(context, patch, patches) for patch, patches in pairs])
        label = torch.cat([self._label(patches) for patches in (fake_patches, real_patches)])
        fake_logits, real_logits = self.patch(patch, label, sets=2).chunk(2)
        loss = discriminator_loss(fake_logits, real_logits, reals.weight)
        return loss, {"loss/discriminator_patch": loss, "logits/real_patch": real_logits.mean()}

    @torch.no_grad()
    def _fakes(
        self, context: PhaseContext, inputs: GeneratorInputs, *, image: bool = True, detail: bool = True
    ) -> Fakes:
        """Scenes for the discriminators; without `image` the 2D branch, without `detail` S3D is left out."""
        w = self.generator.mapping(inputs.z, inputs.conditioning)
        planes = self.generator.planes(w, detail=detail and context.stage == 2, noise="random")
        view = None
        if image and self.has_2d:
            view = self.generator.branch_2d(planes, w, inputs.camera, stochastic=True)
        return Fakes(planes, view)

    def _render_patch(
        self, planes: TriPlanes, view: View | None, camera: Tensor, windows: PatchWindows
    ) -> Tensor:
        """(N, 3, p, p): the 3D branch's patches in `windows`. `view` is the 2D branch's or None."""
        size = self.config.patch_resolution
        uv = patch_uv(windows.corners, size, self.config.model.image_resolution, windows.sides)
        intervals = None if view is None else view.depth_intervals
        colours = self.generator.branch_3d(planes, camera, uv, stochastic=True, intervals=intervals).features
        return colours.transpose(1, 2).unflatten(-1, (size, size))

    def _real_inputs(
        self, context: PhaseContext, reals: Reals, augmentation: Augmentation
    ) -> tuple[Tensor, Tensor]:
        """D's input for reals: the image, and the raw made of it, which is blurred in its own pixels."""
        raw = resize_antialiased(reals.image, self.config.model.neural_rendering_resolution)
        return self._dual_inputs(context, reals.image, gaussian_blur(raw, context.blur_sigma), augmentation)

    def _dual_inputs(
        self, context: PhaseContext, image: Tensor, raw: Tensor, augmentation: Augmentation
    ) -> tuple[Tensor, Tensor]:
        """D's input for images (N, 3, R, R) and raws (N, 3, r, r): image blurred, then both augmented.

        With ADA the raw is resized to R² and back, also while p is 0.
        """
        image = gaussian_blur(image, context.blur_sigma)
        if self.config.augmentation.mode == "none" and augmentation.warp is None:
            return image, raw
        pair = torch.cat([image, resize_antialiased(raw, image.shape[-1])], dim=1)
        image, large_raw = augmentation.apply(pair).split(3, dim=1)
        return image, resize_antialiased(large_raw, raw.shape[-1])

    def _patch_input(self, context: PhaseContext, patch: Tensor, patches: PatchInputs) -> Tensor:
        """D_patch's input for patches (N, 3, p, p): blurred and augmented."""
        return patches.augmentation.apply(gaussian_blur(patch, context.blur_sigma))

    def _label(self, patches: PatchInputs) -> Tensor:
        return patches.windows.label(self.config.model.image_resolution)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """(N, C, H, W) convolved with 2^(-(x/σ)²) over |x| <= ⌊3σ⌋, normalised; σ in pixels, zeros outside.

    That is a Gaussian of standard deviation 0.849 σ.
    """
    radius = int(sigma * 3)
    if radius == 0:
        return image
    taps = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype).div(sigma)
    taps = taps.square().neg().exp2()
    taps = taps / taps.sum()
    kernel = taps.expand(image.shape[1], 1, 1, -1)
    image = F.conv2d(image, kernel, padding=(0, radius), groups=image.shape[1])
    return F.conv2d(image, kernel.transpose(2, 3), padding=(radius, 0), groups=image.shape[1])
