"""S2D, the image super-resolution of the 2D branch (EG3D, sec. 4.2).

Its sizes, for images of R pixels:

| R    | input | up-sampled in  | channels at R / 2, at R |
|------|-------|----------------|-------------------------|
| 128  | 64    | second block   | 128, 64                 |
| 256  | 128   | second block   | 128, 64                 |
| 512  | 128   | both           | 256, 128                |
| 1024 | 256   | both           | 128, 64                 |

The first three are the released networks'. 1024 extends 512: two up-samplings, 65536 / r channels at
resolution r, and `neural_rendering_resolution: 128`.
"""

from __future__ import annotations

from torch import Tensor, nn

from mimic3d.networks.discriminators import CLAMP, resize_antialiased
from mimic3d.networks.layers import SynthesisLayer, ToRGB, upsample
from mimic3d.networks.precision import working_dtype


class SuperresolutionBlock(nn.Module):
    """Two modulated convolutions without noise, and an RGB skip."""

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, resolution: int, *, up: bool, border: str
    ) -> None:
        super().__init__()
        self.up, self.border = up, border
        self.conv0 = SynthesisLayer(
            in_channels, out_channels, w_dim, resolution, up=up, noise=False, clamp=CLAMP
        )
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, noise=False, clamp=CLAMP)
        self.torgb = ToRGB(out_channels, 3, w_dim, clamp=CLAMP)

    def forward(self, x: Tensor, rgb: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: (N, in_channels, h, h) features, of any precision.
            rgb: (N, 3, h, h), the sum of the RGB outputs so far, in its own precision.
            w: (N, w_dim).
        Returns:
            both at the block's resolution.
        """
        x = self.conv1(self.conv0(x, w), w)
        skip = upsample(rgb, self.border) if self.up else rgb
        return x, self.torgb(x, w).to(rgb.dtype) + skip


class Superresolution(nn.Module):
    """Up-samples a small feature image to an RGB image at full resolution."""

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, int],
        w_dim: int,
        input_resolution: int,
        resolution: int,
        precision: str = "fp32",
        border: str = "zero",
    ) -> None:
        super().__init__()
        self.input_resolution, self.precision = input_resolution, precision
        middle = resolution // 2
        up = middle > input_resolution
        self.block0 = SuperresolutionBlock(in_channels, channels[0], w_dim, middle, up=up, border=border)
        self.block1 = SuperresolutionBlock(
            channels[0], channels[1], w_dim, resolution, up=True, border=border
        )

    def forward(self, features: Tensor, w: Tensor) -> Tensor:
        """(N, C, r, r), whose first three channels are RGB, and the last w (N, w_dim), to (N, 3, R, R)."""
        x = resize_antialiased(features, self.input_resolution)
        half = x.to(working_dtype(self.precision, x))
        half, rgb = self.block0(half, x[:, :3], w)
        return self.block1(half, rgb, w)[1]
