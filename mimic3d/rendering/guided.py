"""Fewer, better-placed samples: where the coarse tri-plane's light comes from, the 3D branch looks.

The 2D branch's small render costs next to nothing beside the full-size one, and says of every region of the
image between which depths its light comes from. A ray of the 3D branch then needs only a few samples, all of
them there. (The supplement leaves open how thin structures fare with few random samples.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mimic3d.rendering.volume import Composite

# The shares of a ray's light in front of which its window begins, and ends.
FIRST_LIGHT, LAST_LIGHT = 0.02, 0.98
# How far a window reaches beyond its neighbours', as a share of how far their depths differ: a little between
# samples of a surface, more at its rim, where it bends away from the camera, and only backwards.
MARGIN, RIM = 0.1, 2.0
# A ray with less light than this hits nothing.
_NO_LIGHT = 0.01


@torch.no_grad()
def light_window(seen: Composite) -> Tensor:
    """(N, M, 2): the depths between which nearly all of each ray's light comes from, world units.

    Where a ray hits nothing they are not numbers.
    """
    weights, depths = seen.weights.squeeze(-1), seen.depths.squeeze(-1)
    total = weights.sum(dim=-1, keepdim=True)
    share = weights.cumsum(dim=-1) / total.clamp(min=_NO_LIGHT)
    first = (share < FIRST_LIGHT).sum(dim=-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
    last = (share < LAST_LIGHT).sum(dim=-1, keepdim=True).clamp(max=weights.shape[-1] - 1)
    window = torch.cat([depths.gather(-1, first), depths.gather(-1, last + 1)], dim=-1)
    return torch.where(total < _NO_LIGHT, torch.nan, window)


def window_at(windows: Tensor, uv: Tensor, nowhere: float) -> Tensor:
    """The window of a ray between those of the small render: it spans its neighbours', so edges are covered.

    Args:
        windows: (N, 2, r, r), near and far depth of each ray of the small render, or nan.
        uv: (M, 2) or (N, M, 2), image coordinates.
        nowhere: depth at which to look where no neighbour hit anything.
    Returns:
        (N, M, 2).
    """
    near, far = windows[:, :1], windows[:, 1:]
    middle = (near + far) / 2
    first, last = _least(near), _greatest(far)
    slope = _greatest(middle) - _least(middle)
    at_rim = F.max_pool2d(near.isnan().to(near), 3, stride=1, padding=1)
    pooled = torch.cat([first - slope * MARGIN, last + slope * (MARGIN + at_rim * RIM)], dim=1)
    pooled = torch.where(first.isinf(), nowhere, pooled)
    grid = (uv * 2 - 1).expand(len(windows), *uv.shape[-2:])[:, None]
    found = F.grid_sample(pooled, grid.to(pooled), padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def _greatest(x: Tensor) -> Tensor:
    """Of each pixel's 3x3 neighbours, those without a number left out; -inf where none has one."""
    return F.max_pool2d(x.nan_to_num(nan=-torch.inf), 3, stride=1, padding=1)


def _least(x: Tensor) -> Tensor:
    return -_greatest(-x)


def window_depths(window: Tensor, jitter: Tensor) -> Tensor:
    """Depths that divide each ray's window evenly, each in its own part of it.

    Args:
        window: (N, M, 2), near and far.
        jitter: (N, M, count, 1) in [0, 1]; 0.5 is the middle of a part.
    Returns:
        (N, M, count, 1), increasing.
    """
    count = jitter.shape[2]
    part = torch.arange(count, device=jitter.device)[:, None]
    near, far = window[..., None, :1], window[..., None, 1:]
    return near + (far - near) * ((part + jitter) / count)
