"""Whether two views of one object agree: one is warped into the other through its depth, and compared.

This is not the measure of GRAM-HD and Mimic3D (PSNR of a NeuS fitted to 30 views of each identity), which
takes hours: its numbers cannot be compared with published ones. It asks the same question of neighbouring
views, and is quick enough to be followed through a training. What it does:

1. Two views of one identity are drawn, their cameras turned about the vertical axis by a given angle.
2. Every pixel of the one that shows the object is carried into space by its depth along the ray, and into the
   other view by that camera. The branch's own depth is used; the 2D branch has it at its small render's
   resolution, and it is resized.
3. Left out are pixels that land outside the other image or beside the object, and those that are hidden
   there: where the other view's depth differs from the point's distance by more than a tolerance.
4. Over all remaining pixels of all pairs, in both directions, one PSNR is taken (`warp_psnr/3d`), and beside
   it the share of the object's pixels that could be compared (`warp_share/3d`).

A featureless object agrees with itself whatever its shape, and a blurred one more than a sharp one, because
the other view is read between its pixels: the figure means something beside a Fréchet distance, not alone.
A share far below 1 says that the depths contradict each other, and that the PSNR speaks for few pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from mimic3d.cameras import make_label, pixel_grid, project, rays, split_label
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator

# A pixel shows the object if at least this much of its light comes from it; less is a silhouette, which
# changes with the background behind it.
OPAQUE = 0.9
# How far a depth may lie from the other view's, in sides of the generator's box.
DEPTH_TOLERANCE = 0.04


class DepthView(NamedTuple):
    """A view with its geometry, all of one resolution."""

    image: Tensor
    """(N, 3, R, R) in [-1, 1]."""
    depth: Tensor
    """(N, 1, R, R), distance along the ray in world units."""
    opacity: Tensor
    """(N, 1, R, R) in [0, 1], the share of a pixel's light that comes from the object."""
    camera: Tensor
    """(N, 25)."""


class Agreement(NamedTuple):
    """Sums over compared pixels; they add up over batches and workers."""

    squared_error: float
    """Of images in [-1, 1], summed over compared pixels and the mean of channels."""
    compared: int
    """Pixels compared."""
    visible: int
    """Pixels that show the object."""

    def plus(self, other: Agreement) -> Agreement:
        """Both together."""
        return Agreement(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def psnr(self) -> float:
        """In dB, peak to peak 2; NaN where nothing could be compared, infinite where all is equal."""
        if not self.compared:
            return math.nan
        error = self.squared_error / self.compared
        return 10 * math.log10(4 / error) if error > 0 else math.inf

    @property
    def share(self) -> float:
        """The share of the object's pixels that could be compared; 0 without an object."""
        return self.compared / max(1, self.visible)

    def metrics(self, branch: str) -> dict[str, float]:
        """`warp_psnr/<branch>` (left out where it is not a finite number) and `warp_share/<branch>`."""
        found = {f"warp_psnr/{branch}": self.psnr, f"warp_share/{branch}": self.share}
        return {name: value for name, value in found.items() if math.isfinite(value)}


def turned(camera: Tensor, yaw: float, pivot: Tensor | None = None) -> Tensor:
    """Cameras (N, 25) carried round the vertical axis through `pivot` by `yaw` radians."""
    pose, intrinsic = split_label(camera)
    pose = pose.double().clone()
    centre = torch.zeros(3) if pivot is None else pivot
    centre = centre.to(pose)
    sin, cos = math.sin(yaw), math.cos(yaw)
    rotation = pose.new_tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    pose[:, :3, :3] = rotation @ pose[:, :3, :3]
    pose[:, :3, 3] = (pose[:, :3, 3] - centre) @ rotation.T + centre
    return make_label(pose, intrinsic)


def compare_views(a: DepthView, b: DepthView, tolerance: float) -> Agreement:
    """How well view `b`, warped into view `a`, agrees with it, and the other way round.

    Args:
        tolerance: the largest difference of depths that is still the same surface, in world units.
    """
    return _compare(a, b, tolerance).plus(_compare(b, a, tolerance))


def _compare(a: DepthView, b: DepthView, tolerance: float) -> Agreement:
    resolution = a.image.shape[-1]
    origins, directions = rays(a.camera, pixel_grid(resolution, device=a.image.device))
    points = origins + directions * a.depth.flatten(1).unsqueeze(-1)
    uv, distance = project(b.camera, points)
    grid = (uv * 2 - 1).unflatten(1, (resolution, resolution)).to(b.image)
    # Depth is read between pixels as the mean over what is opaque there, else silhouettes would reach
    # backwards.
    read = torch.cat([b.image, b.depth * b.opacity, b.opacity], dim=1)
    read = grid_sample(read, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    image, weighted_depth, opacity = read.split([3, 1, 1], dim=1)
    depth = weighted_depth / opacity.clamp(min=1e-6)
    distance = distance.view_as(a.depth)
    visible = a.opacity >= OPAQUE
    inside = (grid.abs() <= 1 - 1 / resolution).all(dim=-1).unsqueeze(1) & (distance > 0)
    same = visible & inside & (opacity >= OPAQUE) & ((depth - distance).abs() <= tolerance)
    error = (image - a.image).square().mean(dim=1, keepdim=True)
    return Agreement(float(error[same].double().sum()), int(same.sum()), int(visible.sum()))


@torch.no_grad()
def depth_view(
    G: Generator, w: Tensor, camera: Tensor, branch: str, max_points: int = DEFAULT_MAX_POINTS
) -> DepthView:
    """Draw a branch with its depth and opacity at the image's resolution; `w` (N, num_ws, w_dim)."""
    planes = G.planes(w, detail=branch == "3d", noise="const")
    seen = G.view(planes, w, camera, branch, max_points)
    depth, opacity = seen.depth, seen.opacity
    if branch == "2d":
        size = G.config.image_resolution
        weighted = interpolate(torch.cat([depth * opacity, opacity], 1), size, mode="bilinear")
        opacity = weighted[:, 1:]
        depth = weighted[:, :1] / opacity.clamp(min=1e-6)
    return DepthView(seen.image.clamp(-1, 1), depth, opacity, camera)


def view_agreement(
    G: Generator,
    w: Tensor,
    camera: Tensor,
    branch: str,
    *,
    yaw: float = 0.2,
    pivot: Tensor | None = None,
    max_points: int = DEFAULT_MAX_POINTS,
) -> Agreement:
    """How well two views of each identity agree, `yaw` radians apart, either side of `camera`.

    Args:
        w: (N, num_ws, w_dim), one identity a row.
        camera: (N, 25).
        branch: "2d" or "3d".
        pivot: (3,) what the cameras turn about; the origin when None.
    """
    a, b = (depth_view(G, w, turned(camera, side * yaw / 2, pivot), branch, max_points) for side in (-1, 1))
    return compare_views(a, b, DEPTH_TOLERANCE * G.rendering.box_warp)
