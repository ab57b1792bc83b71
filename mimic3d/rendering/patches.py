"""Patches of the full-size pixel grid, where the 3D branch is taught."""

from __future__ import annotations

import torch
from torch import Tensor

from mimic3d.cameras import pixel_grid


def random_corners(
    batch: int, patch: int, resolution: int, generator: torch.Generator | None = None
) -> Tensor:
    """(batch, 2) top-left corners (row, column), uniform over all whole-pixel positions."""
    return torch.randint(0, resolution - patch + 1, (batch, 2), generator=generator)


def patch_uv(corners: Tensor, patch: int, resolution: int) -> Tensor:
    """(N, patch², 2) image coordinates (u, v) of a patch's pixel centres, row by row.

    Args:
        corners: (N, 2), (row, column) of the top-left pixel in an image of `resolution`.
    """
    inside = pixel_grid(patch, device=corners.device) * patch
    return (inside + corners.flip(-1)[:, None]) / resolution


def crop(images: Tensor, corners: Tensor, patch: int) -> Tensor:
    """(N, C, patch, patch) of (N, C, R, R), each at its own corner (row, column)."""
    pairs = zip(images, corners.tolist(), strict=True)
    return torch.stack(
        [image[:, row : row + patch, column : column + patch] for image, (row, column) in pairs]
    )
