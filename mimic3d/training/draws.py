"""What a step draws: latents, cameras and windows, as functions of (seed, phase, images consumed)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mimic3d.config import Config
from mimic3d.randomness import counter_generator
from mimic3d.rendering.patches import Windows, random_corners
from mimic3d.training.augmentation import Augmentation, draw_augmentation
from mimic3d.training.schedules import goes_on, pose_swap_probability


class Views(NamedTuple):
    """What is to be generated."""

    z: Tensor
    """(N, z_dim)."""
    camera: Tensor
    """(N, 25), that it is seen from."""
    conditioning: Tensor
    """(N, 25), that the generator is told: the same, or a neighbour's in the batch."""

    def part(self, rows: slice) -> Views:
        """Those of some samples."""
        return Views(self.z[rows], self.camera[rows], self.conditioning[rows])


class Look(NamedTuple):
    """How the discriminators look at images."""

    windows: Windows
    """Where the patch discriminator does."""
    augmentation: Augmentation
    """What the dual discriminator's are transformed by."""

    def part(self, rows: slice) -> Look:
        """Those of some samples."""
        return Look(self.windows.part(rows), self.augmentation.part(rows))


class Draws:
    """Draws for the global batch and gives this rank its slice, so that ranks need not agree on anything."""

    def __init__(self, config: Config, rank: int, world_size: int, device: torch.device) -> None:
        self.config, self.device = config, device
        local_batch = config.schedule.batch // world_size
        self.mine = slice(rank * local_batch, (rank + 1) * local_batch)

    def views(self, phase: str, nimg: int, label_pool: Tensor, label_weights: Tensor | None = None) -> Views:
        """Latents and cameras of a phase.

        Args:
            label_pool: (L, 25), that cameras are drawn from, with replacement.
            label_weights: (L,), how often each comes, relative to the others; equally when None.
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
        swap = torch.rand(batch, 1, generator=source) < pose_swap_probability(
            self.config.schedule, nimg, goes_on(self.config, nimg)
        )
        conditioning = torch.where(swap, camera.roll(1, dims=0), camera)
        return Views(*(values[self.mine].to(self.device) for values in (z, camera, conditioning)))

    def windows(self, phase: str, nimg: int) -> Windows:
        """Where a phase's patches lie: uniform over all whole-pixel places, or over all places at all."""
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
        return Windows(corners[self.mine].to(self.device), sides[self.mine].to(self.device))

    def look(self, phase: str, nimg: int, p: float) -> Look:
        """A phase's windows, and its augmentation with probability `p` of each transform."""
        source = counter_generator(self.config.seed, f"augmentation/{phase}", nimg)
        batch, resolution = self.config.schedule.batch, self.config.model.image_resolution
        drawn = draw_augmentation(batch, p, resolution, source).part(self.mine)
        drawn = Augmentation(*(None if each is None else each.to(self.device) for each in drawn))
        return Look(self.windows(phase, nimg), drawn)


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
