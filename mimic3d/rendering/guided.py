"""Guided samples: the 3D branch samples only depths at which the coarse tri-plane contributes to the image.

The 2D branch's small render is cheap beside the full-size one, and gives for each region of the image the
interval of depths that contributes. A ray of the 3D branch then needs few samples, all within its interval.
(The supplement leaves open how thin structures fare with few random samples.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mimic3d.rendering.volume import Composite

# The shares of a ray's total weight before the start of its interval, and before its end.
START_SHARE, END_SHARE = 0.02, 0.98
# By how much an interval is extended at both ends, as a share of the spread of its neighbours' depths; and
# how much farther back at silhouettes, where the surface curves away from the camera.
MARGIN, SILHOUETTE_MARGIN = 0.1, 2.0
# A ray whose total weight is below this hits nothing.
_EMPTY_RAY = 0.01


@torch.no_grad()
def depth_interval(rendered: Composite) -> Tensor:
    """(N, M, 2): the depths between which nearly all of each ray's weight lies, world units.

    NaN for rays that hit nothing.
    """
    weights, depths = rendered.weights.squeeze(-1), rendered.depths.squeeze(-1)
    total = weights.sum(dim=-1, keepdim=True)
    share = weights.cumsum(dim=-1) / total.clamp(min=_EMPTY_RAY)
    start = (share < START_SHARE).sum(dim=-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
    end = (share < END_SHARE).sum(dim=-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
    interval = torch.cat([depths.gather(-1, start), depths.gather(-1, end + 1)], dim=-1)
    return torch.where(total < _EMPTY_RAY, torch.nan, interval)


def interval_at(intervals: Tensor, uv: Tensor, empty: float) -> Tensor:
    """The depth interval of rays between the pixels of the small render: the union of the neighbours' ones.

    Args:
        intervals: (N, 2, r, r), near and far depth of each ray of the small render, or NaN.
        uv: (M, 2) or (N, M, 2), image coordinates.
        empty: the depth to sample where no neighbour hits anything.
    Returns:
        (N, M, 2).
    """
    near, far = intervals[:, :1], intervals[:, 1:]
    middle = (near + far) / 2
    first, last = _neighbours_min(near), _neighbours_max(far)
    spread = _neighbours_max(middle) - _neighbours_min(middle)
    silhouette = F.max_pool2d(near.isnan().to(near), 3, stride=1, padding=1)
    union = torch.cat([first - spread * MARGIN, last + spread * (MARGIN + silhouette * SILHOUETTE_MARGIN)], 1)
    union = torch.where(first.isinf(), empty, union)
    grid = (uv * 2 - 1).expand(len(intervals), *uv.shape[-2:])[:, None]
    interval = F.grid_sample(union, grid.to(union), padding_mode="border", align_corners=False)
    return interval[:, :, 0].transpose(1, 2)


def _neighbours_max(x: Tensor) -> Tensor:
    """(N, 1, r, r): the maximum over each pixel's 3x3 neighbours that are not NaN; -inf where all are."""
    return F.max_pool2d(x.nan_to_num(nan=-torch.inf), 3, stride=1, padding=1)


def _neighbours_min(x: Tensor) -> Tensor:
    return -_neighbours_max(-x)


def interval_depths(interval: Tensor, jitter: Tensor) -> Tensor:
    """Depths in equal parts of each ray's interval, one in each part.

    Args:
        interval: (N, M, 2), near and far depth.
        jitter: (N, M, count, 1) in [0, 1], the position within a part; 0.5 is its middle.
    Returns:
        (N, M, count, 1), increasing.
    """
    count = jitter.shape[2]
    part = torch.arange(count, device=jitter.device)[:, None]
    near, far = interval[..., None, :1], interval[..., None, 1:]
    return near + (far - near) * ((part + jitter) / count)
