"""Patches, on which the 3D branch is trained: square windows of the image, rendered by a grid of rays.

A patch with one ray for each pixel of a window at whole pixels is a crop. With fewer rays than pixels, or at
fractions of pixels, images are interpolated bilinearly at its rays (EpiGRAF, sec. 3.2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mimic3d.cameras import pixel_grid


class PatchWindows(NamedTuple):
    """The window of the image that each sample's patch covers."""

    corners: Tensor
    """(N, 2), (row, column) of the top-left corner in pixels; int64 if patches are crops."""
    sides: Tensor
    """(N,), in pixels."""

    def label(self, resolution: int) -> Tensor:
        """(N, 3): side, and row and column of the centre, each scaled from [0, `resolution`] to [-1, 1]."""
        centres = self.corners + self.sides[:, None] / 2
        return torch.cat([self.sides[:, None], centres], dim=1) / resolution * 2 - 1

    def part(self, rows: slice | Tensor) -> PatchWindows:
        """The windows of some samples."""
        return PatchWindows(self.corners[rows], self.sides[rows])


def random_corners(
    batch: int, patch: int, resolution: int, generator: torch.Generator | None = None
) -> Tensor:
    """(batch, 2) top-left corners (row, column), uniform over all whole-pixel positions."""
    return torch.randint(0, resolution - patch + 1, (batch, 2), generator=generator)


def patch_uv(corners: Tensor, patch: int, resolution: int, sides: Tensor | None = None) -> Tensor:
    """(N, patch², 2) image coordinates (u, v) of a patch's rays, row by row.

    Args:
        corners: (N, 2), (row, column) of the window's top-left corner in an image of `resolution`, in pixels.
        sides: (N,) of the windows, in pixels; `patch` when None.
    """
    side = patch if sides is None else sides[:, None, None].to(torch.float32)
    inside = pixel_grid(patch, device=corners.device) * side
    return (inside + corners.flip(-1)[:, None]) / resolution


def crop(images: Tensor, corners: Tensor, patch: int) -> Tensor:
    """(N, C, patch, patch) crops of (N, C, R, R), each at its own corner (row, column)."""
    steps = torch.arange(patch, device=images.device)
    rows = (corners[:, :1] + steps)[:, None, :, None]
    columns = (corners[:, 1:] + steps)[:, None, None, :]
    sample = torch.arange(len(images), device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[sample, channel, rows, columns]


def extract_patches(images: Tensor, windows: PatchWindows, patch: int) -> Tensor:
    """(N, C, patch, patch) of (N, C, R, R): crops, or the images interpolated at the windows' rays."""
    if not windows.corners.is_floating_point():
        return crop(images, windows.corners, patch)
    uv = patch_uv(windows.corners, patch, images.shape[-1], windows.sides)
    grid = (uv * 2 - 1).unflatten(1, (patch, patch)).to(images)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
