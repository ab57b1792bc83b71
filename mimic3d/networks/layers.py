"""The building blocks of StyleGAN2 (Karras et al., 2020) that every network here is made of.

All weights are equalised: stored N(0, 1) / m and scaled at run time by m / sqrt(fan_in), where m is the
layer's learning-rate multiplier.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOISE_MODES = ("random", "const", "none")
LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2)
DEMODULATION_EPSILON = 1e-8


def activate(x: Tensor, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """Leaky ReLU with slope 0.2 and gain sqrt(2) * `gain`, then a clamp to +-`clamp` * `gain`."""
    x = F.leaky_relu(x, LEAKY_SLOPE) * (LEAKY_GAIN * gain)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def rms_normalize(x: Tensor) -> Tensor:
    """(N, C) divided by its root mean square over C."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _fir(x: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
    kernel = (taps[:, None] * taps * gain).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, padding=padding, stride=stride, groups=x.shape[1])


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """The FIR filter [1, 3, 3, 1] (outer product, normalised) over zero-padded (N, C, H, W), stride 1."""
    return _fir(x, padding, gain=gain)


def blur_downsample(x: Tensor) -> Tensor:
    """The FIR filter with padding 1 and stride 2: (N, C, H, W) to (N, C, H / 2, W / 2)."""
    return _fir(x, padding=1, stride=2)


def upsample(x: Tensor) -> Tensor:
    """Inserts zeros, pads 2 before and 1 after, filters with gain 4: (N, C, H, W) to (N, C, 2H, 2W).

    In polyphase form that is bilinear interpolation with zeros instead of repeated pixels at the border.
    """
    x = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return x[..., 2:-2, 2:-2]


class FullyConnected(nn.Module):
    """An equalised linear layer, (N, in) to (N, out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: bool = False,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.bias_gain == 1 else self.bias * self.bias_gain
        x = F.linear(x, self.weight * self.weight_gain, bias)
        return activate(x) if self.activation else x


class Conv(nn.Module):
    """An equalised, unmodulated convolution of the discriminators, with optional 2x down-sampling."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        bias: bool = True,
        activation: bool = True,
        down: bool = False,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.activation, self.down, self.clamp = activation, down, clamp
        self.padding = kernel // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel**2)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if not self.down:
            x = F.conv2d(x, weight, bias, padding=self.padding)
        elif self.padding:
            x = F.conv2d(blur(x, 2), weight, bias, stride=2)
        else:
            x = F.conv2d(blur_downsample(x), weight, bias)
        if self.activation:
            return activate(x, gain, self.clamp)
        return x * gain if self.clamp is None else (x * gain).clamp(-self.clamp * gain, self.clamp * gain)


def modulated_conv(
    x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool = True, up: bool = False
) -> Tensor:
    """Convolution whose kernel is scaled by a style per sample and input channel (StyleGAN2, eq. 1 and 3).

    The style scales the input and the demodulation the output, which is the same as scaling the kernel but
    lets all samples share one convolution.

    Args:
        x: (N, in, H, W).
        weight: (out, in, k, k).
        style: (N, in).
        demodulate: divides each output channel by the norm of its scaled kernel.
        up: stride-2 transposed convolution and FIR: (N, out, 2H, 2W).
    Returns:
        (N, out, H, W), or twice the size.
    """
    x = x * style[:, :, None, None].to(x.dtype)
    if up:
        x = F.conv_transpose2d(x, weight.transpose(0, 1).to(x.dtype), stride=2)
        x = blur(x, 1, gain=4)
    else:
        x = F.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)
    if demodulate:
        norm = style.square() @ weight.square().sum(dim=(2, 3)).t()
        x = x * (norm + DEMODULATION_EPSILON).rsqrt()[:, :, None, None].to(x.dtype)
    return x


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias and leaky ReLU (StyleGAN2, figure 2c).

    With `groups` planes folded into the batch (plane fastest), each plane has a style of its own and all
    share the kernel and the noise map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        *,
        up: bool = False,
        groups: int = 1,
        noise: bool = True,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.affine = FullyConnected(w_dim, in_channels * groups, bias_init=1.0)
        self.up, self.groups, self.resolution, self.clamp = up, groups, resolution, clamp
        self.has_noise = noise

    def forward(self, x: Tensor, w: Tensor, noise: str = "random") -> Tensor:
        """(N * groups, in, h, w) and (N, w_dim) to (N * groups, out, resolution, resolution)."""
        style = self.affine(w).view(x.shape[0], -1)
        x = modulated_conv(x, self.weight, style, up=self.up)
        if self.has_noise and noise != "none":
            x = x + self._noise(w.shape[0], noise, x)
        return activate(x + self.bias[:, None, None].to(x.dtype), clamp=self.clamp)

    def _noise(self, batch: int, mode: str, like: Tensor) -> Tensor:
        if mode == "const":
            return (self.noise_const * self.noise_strength).to(like.dtype)
        noise = torch.randn(batch, 1, 1, self.resolution, self.resolution, device=like.device)
        noise = (noise * self.noise_strength).expand(-1, self.groups, -1, -1, -1)
        return noise.flatten(0, 1).to(like.dtype)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to image or plane channels, without demodulation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        *,
        groups: int = 1,
        style_fan_in: int | None = None,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = FullyConnected(w_dim, in_channels * groups, bias_init=1.0)
        self.style_gain = 1 / math.sqrt(style_fan_in or in_channels)
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N * groups, in, H, W) and (N, w_dim) to (N * groups, out, H, W)."""
        style = self.affine(w).view(x.shape[0], -1) * self.style_gain
        x = modulated_conv(x, self.weight, style, demodulate=False)
        x = x + self.bias[:, None, None].to(x.dtype)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
