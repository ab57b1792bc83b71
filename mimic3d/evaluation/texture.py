"""Spatiotemporal textures: one row of the image, stacked along a smooth orbit (GRAM-HD; Mimic3D, fig. 5).

In consistent views, a point of the object moves evenly along the row, and the stack shows smooth tilted
strips. Detail that sticks to the screen shows as vertical lines, flicker as noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mimic3d.cameras import pixel_grid
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator


def stack_row(frames: Tensor, row: int | None = None) -> Tensor:
    """The texture (3, T, W) of one row, the middle one when None, of an orbit's frames (T, 3, H, W)."""
    return frames[:, :, frames.shape[2] // 2 if row is None else row].transpose(0, 1)


@torch.no_grad()
def spatiotemporal_texture(
    G: Generator,
    w: Tensor,
    cameras: Tensor,
    branch: str,
    row: int | None = None,
    max_points: int = DEFAULT_MAX_POINTS,
) -> Tensor:
    """The texture of one identity along `cameras`; the 3D branch renders that row only.

    Args:
        w: (1, num_ws, w_dim).
        cameras: (T, 25), a smooth path such as `export.orbits.orbit`.
        branch: "2d" or "3d".
        row: of the image, from the top; the middle one when None.
        max_points: sample points in memory at a time; see `Generator.view`.
    Returns:
        (3, T, R), about [-1, 1].
    """
    size = G.config.image_resolution
    row = size // 2 if row is None else row
    planes = G.planes(w, detail=branch == "3d", noise="const")
    if branch == "3d":
        uv = pixel_grid(size, device=cameras.device)[row * size : (row + 1) * size]
        lines = [G.branch_3d(planes, camera[None], uv).features for camera in cameras]
        return torch.cat(lines).permute(2, 0, 1)
    frames = [G.view(planes, w, camera[None], branch, max_points).image for camera in cameras]
    return stack_row(torch.cat(frames), row)
