"""Volume rendering along rays, in two passes (NeRF, sec. 4 and 5.2; EG3D's segment form)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Composite(NamedTuple):
    """The result of volume rendering along rays."""

    features: Tensor
    """(N, M, C), in [-1, 1] for features in [0, 1]."""
    depth: Tensor
    """(N, M, 1), distance along the ray in world units."""
    weights: Tensor
    """(N, M, S - 1, 1), the contribution of each segment between samples."""
    depths: Tensor
    """(N, M, S, 1), depths of the samples, increasing, world units."""


def stratified_depths(near: float, far: float, count: int, jitter: Tensor) -> Tensor:
    """`count` depths from near to far, each moved forward by `jitter` of one step.

    Args:
        jitter: (N, M, count, 1) in [0, 1]; uniform random, or 0.5 for deterministic depths.
    Returns:
        (N, M, count, 1), increasing.
    """
    steps = torch.linspace(near, far, count, device=jitter.device)
    return steps[:, None] + jitter * ((far - near) / (count - 1))


def composite(densities: Tensor, features: Tensor, depths: Tensor, white_background: bool) -> Composite:
    """Integrates the segments between neighbouring samples, front to back (NeRF, eq. 3).

    A segment's opacity is 1 - exp(-softplus(mean density - 1) * length), its features and depth the means
    of its ends.

    Args:
        densities: (N, M, S, 1), raw.
        features: (N, M, S, C) in [0, 1].
        depths: (N, M, S, 1), increasing.
        white_background: adds the remaining transmittance to the features, which makes the background white.
    """
    optical = F.softplus(midpoints(densities) - 1) * (depths[..., 1:, :] - depths[..., :-1, :])
    # The transmittance is the exponential of a sum, in place of a product of (1 - opacity + 1e-10): the
    # epsilon keeps a product's gradient finite, but is below float32's resolution.
    behind = optical.cumsum(dim=-2)
    weights = torch.exp(optical - behind) * (1 - torch.exp(-optical))
    total = weights.sum(dim=-2)
    colour = (weights.transpose(-1, -2) @ midpoints(features)).squeeze(-2)
    if white_background:
        colour = colour + 1 - total
    middle = midpoints(depths)
    # The depth of a ray that hits nothing is its far end.
    depth = torch.nan_to_num((weights * middle).sum(dim=-2) / total, nan=float("inf"))
    depth = torch.minimum(torch.maximum(depth, depths[..., 0, :]), depths[..., -1, :])
    return Composite(colour * 2 - 1, depth, weights, depths)


def importance_depths(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Samples more depths on each ray where the first pass found density (inverse CDF; NeRF, sec. 5.2).

    The weights are smoothed first (a maximum, then a mean over two neighbours, then + 0.01).

    Args:
        depths: (N, M, S, 1), increasing, world units.
        weights: (N, M, S - 1, 1), of the segments between `depths`.
        u: (N, M, K), quantiles in [0, 1], uniform random or evenly spaced.
    Returns:
        (N, M, K, 1), without gradient, in the order of `u`.
    """
    with torch.no_grad():
        rays = depths.shape[:2]
        smooth = weights.flatten(0, 1).transpose(1, 2)
        smooth = F.avg_pool1d(F.max_pool1d(smooth, 2, stride=1, padding=1), 2, stride=1).squeeze(1) + 0.01
        middle = midpoints(depths).flatten(0, 1).squeeze(-1)
        mass = smooth[:, 1:-1] + 1e-5
        cdf = F.pad((mass / mass.sum(dim=-1, keepdim=True)).cumsum(dim=-1), (1, 0))
        u = u.flatten(0, 1).contiguous()
        right = torch.searchsorted(cdf, u, right=True)
        below, above = (right - 1).clamp(min=0), right.clamp(max=cdf.shape[-1] - 1)
        cdf_below, cdf_above = cdf.gather(-1, below), cdf.gather(-1, above)
        start, end = middle.gather(-1, below), middle.gather(-1, above)
        step = cdf_above - cdf_below
        step = torch.where(step < 1e-5, torch.ones_like(step), step)
        return (start + (u - cdf_below) / step * (end - start)).view(*rays, -1, 1)


def midpoints(x: Tensor) -> Tensor:
    """Means of neighbours along the samples: (N, M, S, C) to (N, M, S - 1, C)."""
    return (x[..., :-1, :] + x[..., 1:, :]) / 2
