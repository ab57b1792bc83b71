"""Reprojection: a view is warped into another through its depth; the metrics of `views` compare with it.

1. Views of one identity are rendered, from cameras that differ by an angle about the vertical axis.
2. Every pixel of one view that shows the object is unprojected by its depth along the ray, and projected
   into the other view. The depth is the branch's own; the 2D branch's has the resolution of its small render
   and is resized.
3. Pixels are left out whose projection is outside the other image or beside the object, and those occluded
   there: where the other view's depth differs from the point's distance by more than a tolerance.

This is not the measure of GRAM-HD and Mimic3D (PSNR of a NeuS fitted to 30 views of each identity), which
takes hours; see `fitted_field`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from mimic3d.cameras import make_label, pixel_grid, project, rays, split_label
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator

# A pixel shows the object if its opacity is at least this; below are silhouettes, which mix with the
# background.
OPAQUE = 0.9
# The largest difference of two views' depths on one surface, in sides of the generator's box.
DEPTH_TOLERANCE = 0.04


class DepthView(NamedTuple):
    """An image with its depth, all of one resolution."""

    image: Tensor
    """(N, 3, R, R) in [-1, 1]."""
    depth: Tensor
    """(N, 1, R, R), distance along the ray in world units."""
    opacity: Tensor
    """(N, 1, R, R) in [0, 1], the object's share of a pixel."""
    camera: Tensor
    """(N, 25)."""


def rotated(camera: Tensor, yaw: float, pivot: Tensor | None = None) -> Tensor:
    """Cameras (N, 25) rotated by `yaw` radians about the vertical axis through `pivot`."""
    pose, intrinsic = split_label(camera)
    pose = pose.double().clone()
    centre = torch.zeros(3) if pivot is None else pivot
    centre = centre.to(pose)
    sin, cos = math.sin(yaw), math.cos(yaw)
    rotation = pose.new_tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    pose[:, :3, :3] = rotation @ pose[:, :3, :3]
    pose[:, :3, 3] = (pose[:, :3, 3] - centre) @ rotation.T + centre
    return make_label(pose, intrinsic)


def warp_view(a: DepthView, b: DepthView, content: Tensor, tolerance: float) -> tuple[Tensor, Tensor, int]:
    """Warps what view `b` shows into view `a`, through the depth of `a`.

    Args:
        content: (N, C, R, R), the image of `b` or any function of it.
        tolerance: the largest difference of depths on one surface, in world units.
    Returns:
        (N, C, R, R), `content` as `a` should see it; (N, 1, R, R) bool, the pixels of `a` whose point `b`
        sees too; and the number of pixels of `a` that show the object.
    """
    resolution = a.image.shape[-1]
    origins, directions = rays(a.camera, pixel_grid(resolution, device=a.image.device))
    points = origins + directions * a.depth.flatten(1).unsqueeze(-1)
    uv, distance = project(b.camera, points)
    grid = (uv * 2 - 1).unflatten(1, (resolution, resolution)).to(b.image)
    # Depth is interpolated with the opacity as its weight, so that silhouettes do not take the background's.
    source = torch.cat([content, b.depth * b.opacity, b.opacity], dim=1)
    warped = grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    content, weighted_depth, opacity = warped.split([content.shape[1], 1, 1], dim=1)
    depth = weighted_depth / opacity.clamp(min=1e-6)
    distance = distance.view_as(a.depth)
    visible = a.opacity >= OPAQUE
    inside = (grid.abs() <= 1 - 1 / resolution).all(dim=-1).unsqueeze(1) & (distance > 0)
    same = visible & inside & (opacity >= OPAQUE) & ((depth - distance).abs() <= tolerance)
    return content, same, int(visible.sum())


@torch.no_grad()
def depth_view(
    G: Generator, w: Tensor, camera: Tensor, branch: str, max_points: int = DEFAULT_MAX_POINTS
) -> DepthView:
    """Renders a branch with depth and opacity at the image's resolution; `w` (N, num_ws, w_dim)."""
    planes = G.planes(w, detail=branch == "3d", noise="const")
    view = G.view(planes, w, camera, branch, max_points)
    depth, opacity = view.depth, view.opacity
    if branch == "2d":
        size = G.config.image_resolution
        weighted = interpolate(torch.cat([depth * opacity, opacity], 1), size, mode="bilinear")
        opacity = weighted[:, 1:]
        depth = weighted[:, :1] / opacity.clamp(min=1e-6)
    return DepthView(view.image.clamp(-1, 1), depth, opacity, camera)
