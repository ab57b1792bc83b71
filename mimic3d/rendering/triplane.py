"""Reading features of 3D points from three axis-aligned planes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# For each plane the coordinates that run along its width and height. Mimic3D's memory order is P_xy[y, x],
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
    index = [axis for pair in PLANE_AXES[axes] for axis in pair]
    grid = (points.detach() * (2 / box_warp))[..., index].unflatten(-1, (3, 2))  # (N, M, 3, 2)
    if planes.device.type == "cpu":
        return _GatherPlanes.apply(planes, grid)
    batch, points_per_sample = points.shape[:2]
    grid = grid.transpose(1, 2).reshape(batch * 3, 1, points_per_sample, 2)
    features = F.grid_sample(planes.flatten(0, 1), grid.to(planes.dtype), align_corners=False)
    return features.view(batch, 3, -1, points_per_sample).mean(dim=1).transpose(1, 2)


class _GatherPlanes(torch.autograd.Function):
    """`sample_triplane` for CPUs: a weighted sum of 12 contiguous rows for each point.

    PyTorch's grid_sample gathers one channel at a time, and takes several times as long forwards; its
    backward pass is used as it is.
    """

    @staticmethod
    def forward(ctx, planes: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(planes, grid)
        batch, _, channels, size, _ = planes.shape
        # With a border of zeros, a point outside reads zeros without being asked where it is.
        side = size + 2
        table = planes.new_zeros(batch, side, side, 3, channels)
        table[:, 1:-1, 1:-1] = planes.permute(0, 3, 4, 1, 2)
        position = (grid * (size / 2)).add_(size / 2 + 0.5).clamp_(0, size + 1)
        corner = position.floor().clamp_(max=size)
        beyond = position.sub_(corner)
        share = torch.stack([1 - beyond, beyond], dim=-1)
        weight = share[..., 1, :, None] * share[..., 0, None, :] / 3  # (N, M, 3, row, column)
        corner = corner.long().clamp_(min=0)  # A point that is not a number reads no memory but the table's.
        index = (corner[..., 1] * side + corner[..., 0]) * 3 + torch.arange(3)
        index += torch.arange(batch)[:, None, None] * (3 * side**2)
        index = index[..., None] + torch.tensor([0, 3, 3 * side, 3 * side + 3])
        features = F.embedding_bag(
            index.view(-1, 12),
            table.view(-1, channels),
            per_sample_weights=weight.view(-1, 12).to(table.dtype),
            mode="sum",
        )
        return features.view(batch, -1, channels)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, None]:
        planes, grid = ctx.saved_tensors
        batch, points, channels = grad.shape
        spread = (grad / 3).transpose(1, 2)[:, None].expand(-1, 3, -1, -1)
        spread = spread.reshape(batch * 3, channels, 1, points)
        grid = grid.transpose(1, 2).reshape(batch * 3, 1, points, 2)
        # Bilinear interpolation (0), zero padding (0), half-pixel centres; no gradient for the points.
        grad_planes, _ = torch.ops.aten.grid_sampler_2d_backward(
            spread, planes.flatten(0, 1).contiguous(), grid.contiguous(), 0, 0, False, [True, False]
        )
        return grad_planes.view_as(planes), None
