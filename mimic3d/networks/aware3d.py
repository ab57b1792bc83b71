"""3D-aware blocks and the tri-plane super-resolution S3D (supplement, figure IV).

Three planes are always folded into the batch, plane fastest: (N * 3, C, R, R), in the order XY, YZ, ZX with
memory layout P_xy[y, x], P_yz[z, y], P_zx[x, z].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimic3d.networks.layers import SynthesisLayer, ToRGB

PLANES = 3


def concat_pooled(x: Tensor) -> Tensor:
    """Beside each plane, the other two pooled along the axis that they do not share with it.

    Args:
        x: (N * 3, C, R, R).
    Returns:
        (N * 3, 3C, R, R), channels from XY, from YZ, from ZX.
    """
    xy, yz, zx = x.unflatten(0, (-1, PLANES)).unbind(1)
    # A mean over a plane's columns is a profile over its rows' axis, and conversely.
    row_profile = {"xy": xy.mean(3), "yz": yz.mean(3), "zx": zx.mean(3)}
    column_profile = {"xy": xy.mean(2), "yz": yz.mean(2), "zx": zx.mean(2)}

    def down_rows(profile: Tensor) -> Tensor:
        return profile[:, :, :, None].expand_as(xy)

    def along_columns(profile: Tensor) -> Tensor:
        return profile[:, :, None, :].expand_as(xy)

    pooled = [
        [xy, down_rows(column_profile["yz"]), along_columns(row_profile["zx"])],
        [along_columns(row_profile["xy"]), yz, down_rows(column_profile["zx"])],
        [down_rows(column_profile["xy"]), along_columns(row_profile["yz"]), zx],
    ]
    return torch.stack([torch.cat(parts, dim=1) for parts in pooled], dim=1).flatten(0, 1)


class PlaneBlock(nn.Module):
    """Two 3x3 layers with noise, then toRGB, whose output alone flows on; styles differ per plane."""

    def __init__(self, channels: int, w_dim: int, resolution: int, *, up: bool, pooled: bool) -> None:
        """`resolution` is that of the output."""
        super().__init__()
        self.pooled = pooled
        fan_in = channels * PLANES if pooled else channels
        self.conv0 = SynthesisLayer(fan_in, channels, w_dim, resolution, up=up, groups=PLANES)
        self.conv1 = SynthesisLayer(fan_in, channels, w_dim, resolution, groups=PLANES)
        self.torgb = ToRGB(fan_in, channels, w_dim, groups=PLANES, style_fan_in=channels)

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        """(N * 3, C, R, R) and (N, w_dim) to (N * 3, C, resolution, resolution)."""
        gather = concat_pooled if self.pooled else _unchanged
        x = self.conv0(gather(x), w, noise)
        x = self.conv1(gather(x), w, noise)
        return self.torgb(gather(x), w)


def _unchanged(x: Tensor) -> Tensor:
    return x


class Aware3D(nn.Module):
    """The 3D-aware block of one resolution; the last one carries S3D as its `block2` and `block3`."""

    def __init__(self, channels: int, w_dim: int, resolution: int, *, last: bool) -> None:
        super().__init__()
        output = resolution if last else 2 * resolution
        self.block = PlaneBlock(channels, w_dim, output, up=not last, pooled=True)
        if last:
            self.block2 = PlaneBlock(channels, w_dim, 2 * resolution, up=True, pooled=False)
            self.block3 = PlaneBlock(channels, w_dim, 2 * resolution, up=False, pooled=False)

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        return self.block(x, w, noise)

    def super_resolve(self, coarse: Tensor, w: Tensor, noise: str) -> Tensor:
        """S3D: the coarse planes to detail planes of twice their size."""
        return self.block3(self.block2(coarse, w, noise), w, noise)
