"""Features of 3D points, sampled from three axis-aligned planes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# The coordinates along the width and the height of each plane. Mimic3D's memory order is P_xy[y, x],
# P_yz[z, y], P_zx[x, z]; EG3D's released networks project on XY, XZ and ZX instead.
PLANE_AXES = {
    "mimic3d": ((0, 1), (1, 2), (2, 0)),
    "eg3d": ((0, 1), (0, 2), (2, 0)),
}


def sample_triplane(planes: Tensor, points: Tensor, box_warp: float, axes: str = "mimic3d") -> Tensor:
    """Mean over the three planes of their bilinear features at each point's projection.

    Args:
        planes: (N, 3, C, R, R); pixels are half-centred on a box of side `box_warp` about the origin.
        points: (N, M, 3), world units; a plane reads zero outside the box.
        box_warp: side of the box, world units.
        axes: which coordinates each plane spans, a key of `PLANE_AXES`.
    Returns:
        (N, M, C); differentiable in `planes`, not in `points`.
    """
    position = (points.detach() * (2 / box_warp)).unbind(-1)
    # Positions along the planes' widths and along their heights, (N, M, 3) each.
    across, along = (torch.stack([position[pair[i]] for pair in PLANE_AXES[axes]], dim=-1) for i in (0, 1))
    if planes.device.type == "cpu":
        return _GatherPlanes.apply(planes, across, along)
    batch, count = points.shape[:2]
    grid = torch.stack([across, along], dim=-1).transpose(1, 2).reshape(batch * 3, 1, count, 2)
    features = F.grid_sample(planes.flatten(0, 1), grid.to(planes.dtype), align_corners=False)
    return features.view(batch, 3, -1, count).mean(dim=1).transpose(1, 2)


class _GatherPlanes(torch.autograd.Function):
    """`sample_triplane` for CPUs: a weighted sum of 12 contiguous rows for each point.

    PyTorch's grid_sample gathers one channel at a time, which takes several times as long.
    """

    @staticmethod
    def forward(ctx: Any, planes: Tensor, across: Tensor, along: Tensor) -> Tensor:
        batch, _, channels, size, _ = planes.shape
        # With a border of zeros, points outside the planes need no case of their own.
        side = size + 2
        table = planes.new_zeros(batch, side, side, 3, channels)
        table[:, 1:-1, 1:-1] = planes.permute(0, 3, 4, 1, 2)
        left, right_share = _corner(across, size)
        top, below_share = _corner(along, size)
        below = below_share / 3
        above = 1 / 3 - below
        right_above, right_below = above * right_share, below * right_share
        # Written out by corner: arithmetic on tensors whose last dimension is 2 is slow.
        weight = torch.stack([above - right_above, right_above, below - right_below, right_below], dim=-1)
        # A NaN point becomes an index of the border, so that it reads no memory outside the table.
        index = (top * side + left).int().clamp_(min=0).mul_(3)
        index += torch.arange(3, dtype=torch.int32)
        index += torch.arange(0, batch * 3 * side**2, 3 * side**2, dtype=torch.int32)[:, None, None]
        neighbours = torch.tensor([0, 3, 3 * side, 3 * side + 3], dtype=torch.int32)
        index = (index[..., None] + neighbours).view(-1, 12)
        weight = weight.view(-1, 12).to(table.dtype)
        ctx.save_for_backward(index, weight)
        ctx.shape = table.shape
        features = F.embedding_bag(index, table.view(-1, channels), per_sample_weights=weight, mode="sum")
        return features.view(batch, -1, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, weight = ctx.saved_tensors
        channels = grad.shape[-1]
        shares = weight[..., None] * grad.reshape(-1, 1, channels)
        table = grad.new_zeros(ctx.shape)
        table.view(-1, channels).index_add_(0, index.view(-1).long(), shares.view(-1, channels))
        return table[:, 1:-1, 1:-1].permute(0, 3, 4, 1, 2), None, None


def _corner(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The bordered table's row or column before a position in [-1, 1], and the fraction beyond it."""
    position = (position * (size / 2)).add_(size / 2 + 0.5).clamp_(0, size + 1)
    corner = position.floor().clamp_(max=size)
    return corner, position.sub_(corner)
