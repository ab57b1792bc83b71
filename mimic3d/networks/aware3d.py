"""3D-aware blocks and the tri-plane super-resolution S3D (supplement, figure IV).

The three planes are concatenated along the channels, (N, 3C, R, R), in the order XY, YZ, ZX with memory
layout P_xy[y, x], P_yz[z, y], P_zx[x, z]. They share kernels, but not styles.

The input of a 3D-aware convolution is a plane and the other two, each pooled along the axis that it does not
share with the plane. In cyclic order, plane p + 1 pooled over its rows is a profile along the rows of plane
p, and plane p + 2 pooled over its columns is a profile along the columns of p. A profile is constant along
one axis, and so is its convolution except at the border: it is computed on a strip three pixels wide and then
expanded, which takes a third of the arithmetic of convolving all 3C channels at full size.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from mimic3d.networks.layers import FullyConnected, NoiseBiasActivation, convolve, demodulation

PLANES = 3
STRIP = 3
# The sources of the kernel's input channels: the plane itself, the next plane and the one after.
OWN, DOWN_ROWS, ALONG_COLUMNS = range(PLANES)
# Pairs (plane, plane that it takes input from), for each source in turn.
_INPUTS = [(plane, (plane + source) % PLANES) for source in range(PLANES) for plane in range(PLANES)]


@functools.lru_cache
def _index(values: tuple[int, ...], device: torch.device) -> Tensor:
    """The values as an index; cached, since each copy to a GPU synchronises with it."""
    return torch.tensor(values, device=device)


def pooled_profiles(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pooled profiles that are the inputs of each plane from the other two.

    Args:
        x: (N, 3C, R, R).
    Returns:
        (N, 3C, R) along the rows of each plane, and (N, 3C, R) along its columns.
    """
    over_rows = x.mean(dim=2).unflatten(1, (PLANES, -1))
    over_columns = x.mean(dim=3).unflatten(1, (PLANES, -1))
    return over_rows.roll(-DOWN_ROWS, dims=1).flatten(1, 2), over_columns.roll(
        -ALONG_COLUMNS, dims=1
    ).flatten(1, 2)


def plane_weights(weight: Tensor) -> tuple[Tensor, ...]:
    """The kernels of all planes for each source: (out, 3C, k, k) to three (3 * out, C, k, k)."""
    index = _index(tuple(plane for _, plane in _INPUTS), weight.device)
    kernels = weight.unflatten(1, (PLANES, -1)).transpose(0, 1).index_select(0, index)
    return kernels.view(PLANES, -1, *kernels.shape[2:]).unbind(0)


def plane_styles(style: Tensor) -> tuple[Tensor, ...]:
    """The styles of all planes for each source: (N, 3 planes, 3C) to three (N, 3C)."""
    index = _index(tuple(own * PLANES + plane for own, plane in _INPUTS), style.device)
    styles = style.reshape(len(style), PLANES * PLANES, -1).index_select(1, index)
    return styles.view(len(style), PLANES, -1).unbind(1)


def convolve_pooled(x: Tensor, weight: Tensor, style: Tensor, *, up: bool = False) -> Tensor:
    """The modulated convolution of each plane and the pooled profiles of the other two.

    Args:
        x: (N, 3C, R, R).
        weight: (out, 3C, k, k), k 1 or 3; inputs from XY, from YZ, from ZX.
        style: (N, 3 planes, 3C).
    Returns:
        (N, 3 * out, R, R), or twice the resolution with `up`.
    """
    of_own, of_rows, of_columns = plane_weights(weight)
    own_style, rows_style, columns_style = plane_styles(style.to(x.dtype))
    own = convolve(x * own_style[:, :, None, None], of_own, up=up, groups=PLANES)
    width = STRIP if weight.shape[-1] > 1 else 1
    rows, columns = pooled_profiles(x)
    rows = (rows * rows_style[:, :, None])[:, :, :, None].expand(-1, -1, -1, width)
    rows = convolve(rows, of_rows, up=up, groups=PLANES)
    columns = (columns * columns_style[:, :, None])[:, :, None, :].expand(-1, -1, width, -1)
    columns = convolve(columns, of_columns, up=up, groups=PLANES)
    return own + _expand_strip(rows, 3, own.shape[3]) + _expand_strip(columns, 2, own.shape[2])


def _expand_strip(strip: Tensor, dim: int, size: int) -> Tensor:
    """Repeats the middle of a strip to `size` along `dim`; its borders are kept."""
    border = strip.shape[dim] // STRIP
    if border == 0:
        return strip
    first, middle = strip.narrow(dim, 0, border), strip.narrow(dim, border, 1)
    last = strip.narrow(dim, strip.shape[dim] - border, border)
    shape = list(strip.shape)
    shape[dim] = size - 2 * border
    return torch.cat([first, middle.expand(shape), last], dim=dim)


class PlaneLayer(NoiseBiasActivation):
    """Modulated 3x3 convolution of three planes, a random noise map for each, bias and leaky ReLU."""

    def __init__(self, channels: int, w_dim: int, resolution: int, *, up: bool, pooled: bool) -> None:
        super().__init__(channels, resolution, noise=True)
        fan_in = channels * PLANES if pooled else channels
        self.weight = nn.Parameter(torch.randn(channels, fan_in, 3, 3))
        self.affine = FullyConnected(w_dim, fan_in * PLANES, bias_init=1.0)
        self.up, self.pooled = up, pooled

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        """(N, 3C, R, R) and (N, w_dim) to (N, 3C, resolution, resolution)."""
        style = self.affine(w).unflatten(1, (PLANES, -1))
        if self.pooled:
            x = convolve_pooled(x, self.weight, style, up=self.up)
        else:
            x = x * style.flatten(1)[:, :, None, None].to(x.dtype)
            x = convolve(x, self.weight.repeat(PLANES, 1, 1, 1), up=self.up, groups=PLANES)
        return self.finish(x, demodulation(self.weight, style).flatten(1), noise)


class PlaneToRGB(nn.Module):
    """Modulated 1x1 convolution of three planes, without demodulation."""

    def __init__(self, channels: int, w_dim: int, *, pooled: bool) -> None:
        super().__init__()
        fan_in = channels * PLANES if pooled else channels
        self.weight = nn.Parameter(torch.randn(channels, fan_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.affine = FullyConnected(w_dim, fan_in * PLANES, bias_init=1.0)
        self.pooled = pooled
        # Of the channels before pooling, which triples them.
        self.style_gain = 1 / math.sqrt(channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, 3C, R, R) and (N, w_dim) to the same size."""
        style = self.affine(w).unflatten(1, (PLANES, -1)) * self.style_gain
        if self.pooled:
            x = convolve_pooled(x, self.weight, style)
        else:
            x = x * style.flatten(1)[:, :, None, None].to(x.dtype)
            x = convolve(x, self.weight.repeat(PLANES, 1, 1, 1), groups=PLANES)
        return x + self.bias.repeat(PLANES)[:, None, None].to(x.dtype)


class PlaneBlock(nn.Module):
    """Two 3x3 layers with noise, then toRGB, whose output is the block's."""

    def __init__(self, channels: int, w_dim: int, resolution: int, *, up: bool, pooled: bool) -> None:
        """`resolution` is that of the output; `pooled` makes every convolution 3D-aware."""
        super().__init__()
        self.conv0 = PlaneLayer(channels, w_dim, resolution, up=up, pooled=pooled)
        self.conv1 = PlaneLayer(channels, w_dim, resolution, up=False, pooled=pooled)
        self.torgb = PlaneToRGB(channels, w_dim, pooled=pooled)

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        """(N, 3C, R, R) and (N, w_dim) to (N, 3C, resolution, resolution)."""
        x = self.conv0(x, w, noise)
        return self.torgb(self.conv1(x, w, noise), w)


class Aware3D(nn.Module):
    """The 3D-aware block of one resolution; the last one has S3D as its `block2` and `block3`."""

    def __init__(
        self, channels: int, w_dim: int, resolution: int, *, last: bool, aware_s3d: bool = False
    ) -> None:
        """`aware_s3d` pools in S3D's convolutions too (supplement: S3D made of 3D-aware blocks)."""
        super().__init__()
        output = resolution if last else 2 * resolution
        self.block = PlaneBlock(channels, w_dim, output, up=not last, pooled=True)
        if last:
            self.block2 = PlaneBlock(channels, w_dim, 2 * resolution, up=True, pooled=aware_s3d)
            self.block3 = PlaneBlock(channels, w_dim, 2 * resolution, up=False, pooled=aware_s3d)

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        """Planes (N, 3C, r, r) and (N, w_dim) to the next resolution's (N, 3C, 2r, 2r); the last keeps r."""
        return self.block(x, w, noise)

    def super_resolve(self, coarse: Tensor, w: Tensor, noise: str) -> Tensor:
        """S3D: the coarse planes to detail planes of twice their resolution."""
        return self.block3(self.block2(coarse, w, noise), w, noise)
