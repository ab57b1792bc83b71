"""Samples the inputs of each phase as functions of (seed, phase, images consumed).

They are latents, cameras, windows of patches, and augmentations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimic3d.config import Config
from mimic3d.randomness import counter_generator
from mimic3d.rendering.patches import PatchWindows, random_corners
from mimic3d.training.augmentation import Augmentation, sample_augmentation
from mimic3d.training.schedules import pose_swap_probability, pretrained


class GeneratorInputs(NamedTuple):
    """The generator's inputs for a batch of images."""

    z: Tensor
    """(N, z_dim)."""
    camera: Tensor
    """(N, 25), from which the images are rendered."""
    conditioning: Tensor
    """(N, 25), the labels that the mapping network is given: `camera`, or a neighbour's in the batch."""

    def part(self, rows: slice | Tensor) -> GeneratorInputs:
        """The inputs of some samples."""
        return GeneratorInputs(self.z[rows], self.camera[rows], self.conditioning[rows])


class PatchInputs(NamedTuple):
    """Positions and augmentation of the patches that the patch discriminator sees."""

    windows: PatchWindows
    augmentation: Augmentation

    def part(self, rows: slice | Tensor) -> PatchInputs:
        """The inputs of some samples."""
        return PatchInputs(self.windows.part(rows), self.augmentation.part(rows))


class Sampler:
    """Samples for the global batch and returns this rank's slice, so that ranks need not communicate."""

    def __init__(self, config: Config, rank: int, world_size: int, device: torch.device) -> None:
        self.config, self.device = config, device
        local_batch = config.schedule.batch // world_size
        self.local = slice(rank * local_batch, (rank + 1) * local_batch)

    def generator_inputs(
        self,
        phase: str,
        nimg: int,
        label_pool: Tensor,
        label_weights: Tensor | None = None,
        *,
        swap_together: bool = False,
    ) -> GeneratorInputs:
        """Latents and cameras of a phase.

        Args:
            label_pool: (L, 25), that cameras are drawn from, with replacement.
            label_weights: (L,), how often each is drawn, relative to the others; equally when None.
            swap_together: swaps the labels of all samples or of none, instead of deciding for each sample.
        """
        batch, seed = self.config.schedule.batch, self.config.seed
        source = counter_generator(seed, f"latents/{phase}", nimg)
        z = torch.randn(batch, self.config.model.z_dim, generator=source)
        source = counter_generator(seed, f"cameras/{phase}", nimg)
        if label_weights is None:
            picks = torch.randint(len(label_pool), (batch,), generator=source)
        else:
            levels = label_weights.to(torch.float64).cumsum(0)
            at = torch.rand(batch, generator=source, dtype=torch.float64) * levels[-1]
            picks = torch.searchsorted(levels, at, right=True).clamp(max=len(label_pool) - 1)
        camera = label_pool[picks]
        swap = torch.rand(1 if swap_together else batch, 1, generator=source) < pose_swap_probability(
            self.config.schedule, nimg, pretrained(self.config, nimg)
        )
        conditioning = torch.where(swap, camera.roll(1, dims=0), camera)
        return GeneratorInputs(*(self._placed(values[self.local]) for values in (z, camera, conditioning)))

    def windows(self, phase: str, nimg: int) -> PatchWindows:
        """The windows of a phase's patches: uniform over all whole-pixel places, or over all places."""
        source = counter_generator(self.config.seed, f"corners/{phase}", nimg)
        batch, resolution = self.config.schedule.batch, self.config.model.image_resolution
        patch, imitation = self.config.patch_resolution, self.config.imitation
        scales = torch.full((batch,), imitation.patch_scale)
        if imitation.patch_anneal_kimg:
            progress = nimg / (imitation.patch_anneal_kimg * 1000)
            scales = annealed_scales(scales, progress, torch.rand(batch, generator=source))
        sides = scales * resolution
        if not imitation.patch_anneal_kimg and imitation.patch_scale * resolution == patch:
            corners = random_corners(batch, patch, resolution, source)
        else:
            corners = torch.rand(batch, 2, generator=source) * (resolution - sides)[:, None]
        return PatchWindows(self._placed(corners[self.local]), self._placed(sides[self.local]))

    def augmentation(self, phase: str, nimg: int, p: float) -> Augmentation:
        """The augmentation of a phase's images, each transform with probability `p`."""
        return self._augmentation(f"augmentation/{phase}", nimg, p, self.config.model.image_resolution)

    def patch_inputs(self, phase: str, nimg: int, p: float) -> PatchInputs:
        """A phase's patches: their windows, and their augmentation with probability `p`."""
        purpose, resolution = f"patch augmentation/{phase}", self.config.patch_resolution
        return PatchInputs(self.windows(phase, nimg), self._augmentation(purpose, nimg, p, resolution))

    def _augmentation(self, purpose: str, nimg: int, p: float, resolution: int) -> Augmentation:
        source = counter_generator(self.config.seed, purpose, nimg)
        sampled = sample_augmentation(self.config.schedule.batch, p, resolution, source).part(self.local)
        return Augmentation(*(None if each is None else self._placed(each) for each in sampled))

    def _placed(self, values: Tensor) -> Tensor:
        # Blocking, each of a step's copies to a GPU would wait until all of its work is done.
        return values.to(self.device, non_blocking=True)


def annealed_scales(least: Tensor, progress: float, u: Tensor) -> Tensor:
    """Scales of windows, whole images at first (EpiGRAF, sec. 3.2): least + (1 - least) · Beta(1, β).

    β rises with `progress` from 0, where all windows are the whole image, to 0.8, where scales are close to
    uniform, and stays there once `progress` is 1.

    Args:
        least: (N,), the smallest scale.
        u: (N,), uniform in [0, 1): the distribution's values.
    """
    beta = 0.8 * min(progress, 1.0)
    if beta == 0:
        return torch.ones_like(least)
    return least + (1 - least) * (1 - (1 - u.double()) ** (1 / beta)).to(least)
