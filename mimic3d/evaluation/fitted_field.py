"""Radiance fields fitted to the views of an object, and metrics of how well one field explains them all.

GRAM-HD and Mimic3D fit a NeuS to 30 views of each of 50 objects and report PSNR and SSIM of its renders. The
field here is a grid of densities and colours, fitted in seconds: its numbers order generators, but are not
the published ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimic3d.cameras import pixel_grid, rays
from mimic3d.evaluation.detail import FINE_FLOOR, band_sums, bands, correlation
from mimic3d.evaluation.metric import RatioMetric, ViewMetric, Views
from mimic3d.evaluation.ssim import ssim_map
from mimic3d.evaluation.views import psnr
from mimic3d.randomness import counter_generator

# Cells along a side of the grid, from the first to the last, and the steps of each. On the last one the rate
# falls from the first value to the second: otherwise the noise of the steps hides what views disagree in.
GRIDS, STEPS = (16, 32, 48), (60, 60, 120)
RAYS, SAMPLES = 1536, 64
_RATE, _LAST_RATE, _SMOOTHNESS = 0.15, 0.01, 5e-4
_INITIAL_DENSITY = -3.0
_RAYS_AT_ONCE = 4096
# Blocks of neighbouring views along the orbit, shared in turn between two fields. If single views alternated,
# both fields would average to one result what drifts with the camera, and agree.
BLOCKS = 6


@dataclass(frozen=True)
class Rendered:
    """Renders of a field: (V, 3, R, R) images in [-1, 1], and (V, 1, R, R) depth and opacity."""

    images: Tensor
    depth: Tensor
    opacity: Tensor


class GridField(nn.Module):
    """Density and colour on the points of a grid, interpolated between them, without view dependence.

    Args:
        box: side of the box around the origin that the grid fills, world units.
        background: (3,), the colour in [-1, 1] behind the object.
    """

    def __init__(self, box: float, background: Tensor, cells: int) -> None:
        super().__init__()
        self.box = box
        grid = torch.zeros(1, 4, cells, cells, cells)
        grid[:, 3] = _INITIAL_DENSITY
        self.grid = nn.Parameter(grid)
        self.background = background

    def refine(self, cells: int) -> None:
        """Interpolates the grid to `cells` along each side."""
        with torch.no_grad():
            finer = F.interpolate(self.grid, size=(cells,) * 3, mode="trilinear", align_corners=True)
        self.grid = nn.Parameter(finer)

    def forward(self, origins: Tensor, directions: Tensor, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Renders rays.

        Args:
            origins, directions: (M, 3).
            jitter: (M, 1) in [0, 1), of the samples.
        Returns:
            (M, 3) colours in [-1, 1], (M,) expected depths in world units, (M,) opacities.
        """
        # Where a ray enters and leaves the sphere around the box.
        radius = self.box * math.sqrt(3) / 2
        middle = -(origins * directions).sum(dim=1, keepdim=True)
        closest = (origins + middle * directions).square().sum(dim=1, keepdim=True)
        half = (radius**2 - closest).clamp(min=1e-6).sqrt()
        steps = (torch.arange(SAMPLES, device=origins.device) + jitter) / SAMPLES
        depths = (middle - half) + 2 * half * steps
        points = origins[:, None] + depths[..., None] * directions[:, None]
        values = F.grid_sample(
            self.grid, (points * (2 / self.box))[None, None], align_corners=True, padding_mode="zeros"
        )[0, :, 0]
        inside = (points.abs() <= self.box / 2).all(dim=-1)
        density = F.softplus(values[3]) * (32 / self.box) * inside
        optical = density * (2 * half / SAMPLES)
        behind = optical.cumsum(dim=1)
        weights = torch.exp(optical - behind) * (1 - torch.exp(-optical))
        opacity = weights.sum(dim=1)
        colour = torch.einsum("ms,cms->mc", weights, torch.tanh(values[:3]))
        colour = colour + (1 - opacity)[:, None] * self.background
        depth = (weights * depths).sum(dim=1) / opacity.clamp(min=1e-6)
        return colour, depth, opacity


@torch.enable_grad()
def fit_field(images: Tensor, cameras: Tensor, box: float, seed: int) -> GridField:
    """Fits a field to views, by gradient descent on random rays.

    Args:
        images: (V, 3, R, R) in [-1, 1].
        cameras: (V, 25).
        box: side of the object's box, world units.
    """
    source = counter_generator(seed, "fitted field")
    field = GridField(box, background(images), GRIDS[0])
    origins, directions = rays(cameras, pixel_grid(images.shape[-1]))
    origins, directions = origins.flatten(0, 1), directions.flatten(0, 1)
    colours = images.flatten(2).transpose(1, 2).flatten(0, 1)
    for cells, steps in zip(GRIDS, STEPS, strict=True):
        if cells != GRIDS[0]:
            field.refine(cells)
        optimizer = torch.optim.Adam(field.parameters(), lr=_RATE, betas=(0.9, 0.99))
        for step in range(steps):
            if cells == GRIDS[-1]:
                fall = (1 + math.cos(math.pi * step / steps)) / 2
                optimizer.param_groups[0]["lr"] = _LAST_RATE + (_RATE - _LAST_RATE) * fall
            pick = torch.randint(len(colours), (RAYS,), generator=source)
            jitter = torch.rand(RAYS, 1, generator=source)
            found, _, _ = field(origins[pick], directions[pick], jitter)
            loss = (found - colours[pick]).square().mean() + _SMOOTHNESS * _roughness(field.grid)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return field


def background(images: Tensor) -> Tensor:
    """(3,): the median colour of the corners of images (V, 3, R, R)."""
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    return corners.permute(1, 0, 2).flatten(1).median(dim=1).values


def _roughness(grid: Tensor) -> Tensor:
    """The mean absolute difference of neighbours (total variation)."""
    total = grid.new_zeros(())
    for axis in (2, 3, 4):
        total = total + grid.diff(dim=axis).abs().mean()
    return total


@torch.no_grad()
def render_field(field: GridField, cameras: Tensor, resolution: int) -> Rendered:
    """Renders a field from (V, 25) cameras."""
    origins, directions = rays(cameras, pixel_grid(resolution))
    parts = []
    for origin, direction in zip(
        origins.flatten(0, 1).split(_RAYS_AT_ONCE), directions.flatten(0, 1).split(_RAYS_AT_ONCE), strict=True
    ):
        colour, depth, opacity = field(origin, direction, torch.full((len(origin), 1), 0.5))
        parts.append(torch.cat([colour, depth[:, None], opacity[:, None]], dim=1))
    flat = torch.cat(parts).unflatten(0, (len(cameras), resolution, resolution)).permute(0, 3, 1, 2)
    return Rendered(flat[:, :3], flat[:, 3:4], flat[:, 4:])


def first_half(count: int) -> Tensor:
    """(count,) bool: the views that the first field is fitted to, every other block of about `BLOCKS`."""
    return (torch.arange(count) // max(1, round(count / BLOCKS))) % 2 == 0


@functools.lru_cache(maxsize=1)
def fitted_halves(views: Views) -> tuple[Rendered, Rendered]:
    """All views as rendered by two fields, fitted to the views of `first_half` and to the others.

    The result of the last object is kept, because several metrics are computed from it.
    """
    resolution = views.images.shape[-1]
    first = first_half(len(views.images))
    fields = [
        fit_field(views.images[half], views.cameras[half], views.box, seed)
        for seed, half in enumerate((first, ~first))
    ]
    a, b = (render_field(field, views.cameras, resolution) for field in fields)
    return a, b


def held_out(views: Views) -> Rendered:
    """Every view as rendered by the field that was not fitted to it."""
    return _joined(*reversed(fitted_halves(views)))


def _fitted(views: Views) -> Rendered:
    """Every view as rendered by the field that was fitted to it."""
    return _joined(*fitted_halves(views))


def _joined(a: Rendered, b: Rendered) -> Rendered:
    """The views of `first_half` of one render, and the others of the other."""
    first = first_half(len(a.images)).to(a.images.device)[:, None, None, None]
    parts = ((a.images, b.images), (a.depth, b.depth), (a.opacity, b.opacity))
    return Rendered(*(torch.where(first, x, y) for x, y in parts))


class FieldPsnr(ViewMetric):
    kind = "field_psnr"
    needs = ("cameras", "field")
    direction = "up"
    range = "0 to ∞ dB"
    about = "PSNR of fitted fields' renders and the views that they were fitted to (GRAM-HD, Mimic3D)"
    fooled_by = "blur, and objects of one colour: read it beside field_detail"

    def part(self, views: Views) -> Sequence[float]:
        return _squares(_fitted(views).images, views.images)

    def value(self, sums: Tensor) -> float:
        return psnr(sums)


class FieldSsim(RatioMetric):
    kind = "field_ssim"
    needs = ("cameras", "field")
    direction = "up"
    range = "-1 to 1"
    about = "SSIM of the same (Gaussian window, σ 1.5)"
    fooled_by = "blur; a large background of one colour"

    def part(self, views: Views) -> Sequence[float]:
        similarity = ssim_map(_fitted(views).images, views.images)
        return float(similarity.double().sum()), similarity.numel()


class FieldHeldOutPsnr(ViewMetric):
    kind = "field_heldout_psnr"
    needs = ("cameras", "field")
    direction = "up"
    range = "0 to ∞ dB"
    about = "PSNR of each view and the render of the field that was fitted to the other half of the views"
    fooled_by = "blur, and objects of one colour"

    def part(self, views: Views) -> Sequence[float]:
        return _squares(held_out(views).images, views.images)

    def value(self, sums: Tensor) -> float:
        return psnr(sums)


class FieldDetail(ViewMetric):
    kind = "field_detail"
    needs = ("cameras", "field")
    direction = "up"
    range = "-1 to 1; 1: all detail is predicted from other views"
    about = (
        "correlation of the detail of each view with the render of the field fitted to the other half; the "
        "headline figure of consistency"
    )
    fooled_by = "one image repeated, which lowers it little (see field_depth); a coarse field lowers it"

    def part(self, views: Views) -> Sequence[float]:
        everywhere = torch.ones_like(views.images[:, :1], dtype=torch.bool)
        return band_sums(bands(held_out(views).images), bands(views.images), everywhere)

    def value(self, sums: Tensor) -> float:
        return correlation(sums, FINE_FLOOR)


class FieldsAgreement(ViewMetric):
    kind = "fields_detail"
    needs = ("cameras", "field")
    direction = "up"
    range = "-1 to 1"
    about = (
        "correlation of the detail of two fields' renders, fitted to disjoint halves of the views, whose "
        f"blocks (about {BLOCKS}) alternate along the orbit"
    )
    fooled_by = "inconsistency that both fields average to the same result; one image repeated"

    def part(self, views: Views) -> Sequence[float]:
        a, b = fitted_halves(views)
        everywhere = torch.ones_like(views.images[:, :1], dtype=torch.bool)
        return band_sums(bands(a.images), bands(b.images), everywhere)

    def value(self, sums: Tensor) -> float:
        return correlation(sums, FINE_FLOOR)


class FieldsDepth(RatioMetric):
    kind = "fields_depth"
    needs = ("cameras", "field")
    direction = "down"
    range = "0 to 1, in sides of the box"
    about = "mean difference of the depths of the two fields, where both show the object"
    fooled_by = "objects that all fields fit as a flat picture, such as one image repeated"

    def part(self, views: Views) -> Sequence[float]:
        a, b = fitted_halves(views)
        both = (a.opacity > 0.5) & (b.opacity > 0.5)
        difference = (a.depth - b.depth).abs()[both] / views.box
        return float(difference.double().sum()), int(both.sum())


def _squares(a: Tensor, b: Tensor) -> tuple[float, int]:
    square = (a - b).square().mean(dim=1)
    return float(square.double().sum()), square.numel()
