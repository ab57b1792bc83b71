"""The tri-plane backbone: a StyleGAN2 synthesis network whose planes pass through 3D-aware blocks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mimic3d.networks.aware3d import PLANES, Aware3D
from mimic3d.networks.discriminators import channels_at
from mimic3d.networks.layers import SynthesisLayer, ToRGB, upsample
from mimic3d.networks.mapping import Mapping


class TriPlanes(NamedTuple):
    """The features of a scene on three axis-aligned planes."""

    coarse: Tensor
    """(N, 3, C, R, R), sampled by both branches."""
    detail: Tensor | None
    """(N, 3, C, 2R, 2R), sampled by the 3D branch and added per plane; None without S3D."""


class SynthesisBlock(nn.Module):
    """One resolution of the backbone: two modulated convolutions (one at 4x4) and toRGB to the planes."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, planes: int) -> None:
        """
        Args:
            in_channels: of the block before; 0 for the first block, which begins with a learned constant.
            planes: channels of the three planes together.
        """
        super().__init__()
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=True)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution)
        self.torgb = ToRGB(out_channels, planes, w_dim)
        self.is_first = in_channels == 0
        self.num_convs = 1 if self.is_first else 2

    def forward(
        self, x: Tensor | None, accumulated: Tensor | None, w: Tensor, noise: str
    ) -> tuple[Tensor, Tensor]:
        """Features and accumulated planes (N, 3C, R, R) from half the size; w: (N, convs + 1, w_dim)."""
        x = self.const.expand(w.shape[0], -1, -1, -1) if x is None else self.conv0(x, w[:, 0], noise)
        x = self.conv1(x, w[:, self.num_convs - 1], noise)
        planes = self.torgb(x, w[:, self.num_convs])
        return x, planes if accumulated is None else upsample(accumulated) + planes


class Synthesis(nn.Module):
    """Synthesises tri-planes from w. Without 3D-aware blocks it is EG3D's: the accumulated planes."""

    def __init__(
        self,
        resolution: int,
        w_dim: int,
        plane_channels: int,
        channel_base: int,
        channel_max: int,
        *,
        aware3d: bool,
        aware_s3d: bool = False,
    ) -> None:
        super().__init__()
        self.resolutions = [2**k for k in range(2, int(math.log2(resolution)) + 1)]
        self.aware3d = aware3d
        channels = 0
        for r in self.resolutions:
            out_channels = channels_at(r, channel_base, channel_max)
            setattr(self, f"b{r}", SynthesisBlock(channels, out_channels, w_dim, r, PLANES * plane_channels))
            if aware3d:
                block = Aware3D(plane_channels, w_dim, r, last=r == resolution, aware_s3d=aware_s3d)
                setattr(self, f"b3d{r}", block)
            channels = out_channels
        self.num_ws = 2 * len(self.resolutions)

    def forward(self, w: Tensor, *, detail: bool, noise: str) -> TriPlanes:
        """(N, num_ws, w_dim) to tri-planes; S3D runs only with `detail`."""
        x: Tensor | None = None
        accumulated: Tensor | None = None
        aware: Tensor | None = None
        first = 0
        for r in self.resolutions:
            block = getattr(self, f"b{r}")
            w_block = w[:, first : first + block.num_convs + 1]
            first += block.num_convs
            x, accumulated = block(x, accumulated, w_block, noise)
            if self.aware3d:
                planes = accumulated if aware is None else accumulated + aware
                aware = getattr(self, f"b3d{r}")(planes, w_block[:, -1], noise)
        coarse = aware if self.aware3d else accumulated
        assert coarse is not None, "there is at least the block of 4x4"
        if not self.aware3d or not detail:
            return TriPlanes(_split(coarse), None)
        last = getattr(self, f"b3d{self.resolutions[-1]}")
        return TriPlanes(_split(coarse), _split(last.super_resolve(coarse, w[:, -1], noise)))

    def scale_detail(self, factor: float) -> None:
        """Multiplies S3D's last weights by `factor`; at 0 the detail planes begin as zeros."""
        if self.aware3d:
            with torch.no_grad():
                getattr(self, f"b3d{self.resolutions[-1]}").block3.torgb.weight.mul_(factor)


def _split(planes: Tensor) -> Tensor:
    return planes.unflatten(1, (PLANES, -1))


class Backbone(nn.Module):
    """Mapping and synthesis, under the names of the released checkpoints."""

    def __init__(
        self,
        resolution: int,
        z_dim: int,
        w_dim: int,
        mapping_layers: int,
        plane_channels: int,
        channel_base: int,
        channel_max: int,
        *,
        aware3d: bool,
        aware_s3d: bool = False,
    ) -> None:
        super().__init__()
        self.synthesis = Synthesis(
            resolution, w_dim, plane_channels, channel_base, channel_max, aware3d=aware3d, aware_s3d=aware_s3d
        )
        self.mapping = Mapping(z_dim, w_dim, self.synthesis.num_ws, mapping_layers)
