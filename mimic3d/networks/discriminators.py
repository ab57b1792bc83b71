"""The dual discriminator of the 2D branch and the patch discriminator of the 3D branch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimic3d.cameras import LABEL_SIZE
from mimic3d.config.shares import std_group
from mimic3d.networks.layers import Conv, FullyConnected, rms_normalize
from mimic3d.networks.mapping import LR_MULTIPLIER
from mimic3d.networks.precision import working_dtype

LABEL_LAYERS = 8
CLAMP = 256.0
HALF_PRECISION_RESOLUTIONS = 4


def resize_antialiased(image: Tensor, resolution: int) -> Tensor:
    """(N, C, H, W) to (N, C, resolution, resolution), bilinear with antialiasing."""
    if image.shape[-1] == resolution:
        return image
    size = (resolution, resolution)
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the second halving the size, beside a 1x1 skip (StyleGAN2, figure 7c)."""

    def __init__(
        self, in_channels: int, out_channels: int, image_channels: int = 0, clamp: float | None = None
    ) -> None:
        super().__init__()
        self.fromrgb = Conv(image_channels, in_channels, 1, clamp=clamp) if image_channels else None
        self.conv0 = Conv(in_channels, in_channels, 3, clamp=clamp)
        self.conv1 = Conv(in_channels, out_channels, 3, down=True, clamp=clamp)
        self.skip = Conv(in_channels, out_channels, 1, bias=False, activation=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W), or an image for the first block, to (N, out_channels, H / 2, W / 2)."""
        if self.fromrgb is not None:
            x = self.fromrgb(x)
        skip = self.skip(x, gain=math.sqrt(0.5))
        return self.conv1(self.conv0(x), gain=math.sqrt(0.5)) + skip


class Epilogue(nn.Module):
    """Minibatch standard deviation, a convolution and two linear layers at 4x4."""

    def __init__(self, channels: int, out_features: int, clamp: float | None = None) -> None:
        super().__init__()
        self.conv = Conv(channels + 1, channels, 3, clamp=clamp)
        self.fc = FullyConnected(channels * 16, channels, activation=True)
        self.out = FullyConnected(channels, out_features)

    def forward(self, x: Tensor, sets: int = 1) -> Tensor:
        """(N, C, 4, 4) to (N, out_features); minibatch statistics are of each of `sets` equal parts."""
        std = torch.cat([minibatch_std(part) for part in x.chunk(sets)])
        x = self.conv(torch.cat([x, std], dim=1))
        return self.out(self.fc(x.flatten(1)))


def minibatch_std(x: Tensor) -> Tensor:
    """(N, 1, H, W): the mean standard deviation of (N, C, H, W) in strided groups of min(4, N) samples."""
    group = std_group(x.shape[0])
    std = x.unflatten(0, (group, -1)).var(dim=0, correction=0).add(1e-8).sqrt()
    return std.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1).repeat(group, 1, *x.shape[2:])


class LabelMapping(nn.Module):
    """Maps a label to the direction onto which the discriminator's features are projected."""

    def __init__(self, features: int, label_size: int = LABEL_SIZE) -> None:
        super().__init__()
        self.embed = FullyConnected(label_size, features)
        for index in range(LABEL_LAYERS):
            layer = FullyConnected(features, features, activation=True, lr_multiplier=LR_MULTIPLIER)
            setattr(self, f"fc{index}", layer)

    def forward(self, label: Tensor) -> Tensor:
        """(N, label_size) to (N, features)."""
        x = rms_normalize(self.embed(label))
        for index in range(LABEL_LAYERS):
            x = getattr(self, f"fc{index}")(x)
        return x


class _Residual(nn.Module):
    """Residual blocks from the image's resolution down to 4x4, the finest in half precision.

    In float16 runs (`mixed`) the activations of all convolutions are clamped, the last one's included.
    """

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        channel_base: int,
        channel_max: int,
        out_features: int,
        precision: str,
    ) -> None:
        super().__init__()
        self.precision = precision
        clamp = CLAMP if precision == "mixed" else None
        self.resolutions = [2**k for k in range(int(math.log2(resolution)), 2, -1)]
        for index, r in enumerate(self.resolutions):
            block = ResidualBlock(
                channels_at(r, channel_base, channel_max),
                channels_at(r // 2, channel_base, channel_max),
                image_channels if index == 0 else 0,
                clamp=clamp,
            )
            setattr(self, f"b{r}", block)
        self.b4 = Epilogue(channels_at(4, channel_base, channel_max), out_features, clamp)

    def score(self, x: Tensor, sets: int = 1) -> Tensor:
        """(N, out_features) of images (N, C, R, R); `sets` as in `Epilogue.forward`."""
        full = x.dtype
        fine = working_dtype(self.precision, x)
        for index, r in enumerate(self.resolutions):
            x = getattr(self, f"b{r}")(x.to(fine if index < HALF_PRECISION_RESOLUTIONS else full))
        return self.b4(x.to(full), sets)

    def project(self, x: Tensor, direction: Tensor, sets: int = 1) -> Tensor:
        """(N, 1) logits of images (N, C, R, R), given the direction (N, F) of their labels."""
        return (self.score(x, sets) * direction).sum(dim=1, keepdim=True) / math.sqrt(direction.shape[1])


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """C(r) = min(base / r, max), the width of every StyleGAN2 network at resolution r."""
    return min(channel_base // resolution, channel_max)


class DualDiscriminator(_Residual):
    """The discriminator of images and their raw renders, conditioned on the camera (EG3D, sec. 4.3)."""

    def __init__(self, resolution: int, channel_base: int, channel_max: int, precision: str = "fp32") -> None:
        features = channels_at(4, channel_base, channel_max)
        super().__init__(resolution, 6, channel_base, channel_max, features, precision)
        self.resolution = resolution
        self.mapping = LabelMapping(features)

    def forward(self, image: Tensor, raw: Tensor, camera: Tensor, sets: int = 1) -> Tensor:
        """
        Args:
            image: (N, 3, R, R) in [-1, 1].
            raw: (N, 3, r, r), the small render; for a real image, the image resized to r.
            camera: (N, 25).
            sets: number of equal parts of the batch whose minibatch statistics are separate.
        Returns:
            (N, 1) logits.
        """
        x = torch.cat([image, resize_antialiased(raw, self.resolution)], dim=1)
        return self.project(x, self.mapping(camera), sets)


class PatchDiscriminator(_Residual):
    """The discriminator of patches: unconditional, or conditioned on their windows."""

    def __init__(
        self,
        resolution: int,
        channel_base: int,
        channel_max: int,
        precision: str = "fp32",
        label_size: int = 0,
    ) -> None:
        features = channels_at(4, channel_base, channel_max) if label_size else 1
        super().__init__(resolution, 3, channel_base, channel_max, features, precision)
        self.mapping = LabelMapping(features, label_size) if label_size else None

    def forward(self, patch: Tensor, label: Tensor | None = None, sets: int = 1) -> Tensor:
        """(N, 3, p, p) in [-1, 1], and labels (N, label_size) if it is conditional, to (N, 1) logits.

        `sets` as in `DualDiscriminator.forward`.
        """
        if self.mapping is None:
            return self.score(patch, sets)
        return self.project(patch, self.mapping(label), sets)
