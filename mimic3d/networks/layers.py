"""The layers of StyleGAN2 (Karras et al., 2020), of which all networks here are made.

All weights are equalised: stored N(0, 1) / m and scaled at run time by m / sqrt(fan_in), where m is the
layer's learning-rate multiplier.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mimic3d.networks.precision import scaled_for_half
from mimic3d.sample_noise import normal_rows

NOISE_MODES = ("random", "const", "none")
FIR = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2)
DEMODULATION_EPSILON = 1e-8


def leaky(x: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky ReLU with slope 0.2, in place, then a clamp to +-`clamp`.

    Its gain of sqrt(2) is multiplied into the weights and biases before it, which are smaller tensors: leaky
    ReLU commutes with positive factors.
    """
    return clamped(F.leaky_relu(x, LEAKY_SLOPE, inplace=True), clamp)


def clamped(x: Tensor, limit: float | None) -> Tensor:
    """x within +-`limit`, if there is one."""
    # The gradient of torch.clamp takes six operations, that of hardtanh one.
    return x if limit is None else F.hardtanh(x, -limit, limit)


def rms_normalize(x: Tensor) -> Tensor:
    """(N, C) divided by its root mean square over C."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


@functools.lru_cache
def _fir_kernel(gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(4, 4); cached, since each copy to a GPU synchronises with it."""
    return torch.tensor([[a * b * gain for a in FIR] for b in FIR], dtype=dtype, device=device)


def _fir(x: Tensor, padding: int, stride: int = 1, gain: float = 1.0) -> Tensor:
    kernel = _fir_kernel(gain, x.dtype, x.device).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, padding=padding, stride=stride, groups=x.shape[1])


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """The FIR filter [1, 3, 3, 1] (outer product, normalised) over zero-padded (N, C, H, W), stride 1."""
    return _fir(x, padding, gain=gain)


def blur_downsample(x: Tensor) -> Tensor:
    """The FIR filter with padding 1 and stride 2: (N, C, H, W) to (N, C, H / 2, W / 2)."""
    return _fir(x, padding=1, stride=2)


def upsample(x: Tensor, border: str = "zero") -> Tensor:
    """Inserts zeros, pads 2 before and 1 after, filters with gain 4: (N, C, H, W) to (N, C, 2H, 2W).

    In polyphase form that is bilinear interpolation with zeros instead of repeated pixels at the border,
    which darkens it by a quarter. With `border="replicate"` it does not.
    """
    if border == "replicate":
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    x = F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear", align_corners=False)
    return x[..., 2:-2, 2:-2]


class FullyConnected(nn.Module):
    """An equalised linear layer, with leaky ReLU behind it if `activation`."""

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
        """(..., in) to (..., out)."""
        gain = LEAKY_GAIN if self.activation else 1.0
        alpha, beta = self.weight_gain * gain, self.bias_gain * gain
        if x.dim() == 2:  # One operation instead of three, which matters in small networks.
            x = torch.addmm(self.bias, x, self.weight.t(), beta=beta, alpha=alpha)
        else:
            x = F.linear(x, self.weight * alpha, self.bias * beta)
        return leaky(x) if self.activation else x


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
        """(N, in, H, W) to (N, out, H, W), or half the size, times `gain`, clamped to +-`clamp` * `gain`."""
        total = gain * LEAKY_GAIN if self.activation else gain
        weight = (self.weight * (self.weight_gain * total)).to(x.dtype)
        bias = None if self.bias is None else (self.bias * total).to(x.dtype)
        if not self.down:
            x = F.conv2d(x, weight, bias, padding=self.padding)
        elif self.padding:
            x = F.conv2d(blur(x, 2), weight, bias, stride=2)
        else:
            x = F.conv2d(blur_downsample(x), weight, bias)
        clamp = None if self.clamp is None else self.clamp * gain
        return leaky(x, clamp) if self.activation else x


def convolve(x: Tensor, weight: Tensor, *, up: bool = False, groups: int = 1) -> Tensor:
    """A 3x3 or 1x1 convolution at the same size; with `up`, transposed with stride 2 and FIR: twice the size.

    Args:
        x: (N, groups * in, H, W).
        weight: (groups * out, in, k, k); convolved with x when up-sampling, otherwise correlated.
    """
    if not up:
        return F.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2, groups=groups)
    transposed = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return blur(F.conv_transpose2d(x, transposed.to(x.dtype), stride=2, groups=groups), 1, gain=4)


def demodulation(weight: Tensor, style: Tensor) -> Tensor:
    """1 / norm of each output channel's kernel scaled by a style (StyleGAN2, eq. 3).

    Args:
        weight: (out, in, k, k).
        style: (..., in).
    Returns:
        (..., out).
    """
    norm = style.square() @ weight.square().sum(dim=(2, 3)).t()
    return (norm + DEMODULATION_EPSILON).rsqrt()


class NoiseBiasActivation(nn.Module):
    """The operations after a modulated convolution: demodulation, noise, bias and leaky ReLU."""

    noise_const: Tensor

    def __init__(self, channels: int, resolution: int, *, noise: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.has_noise = noise

    def finish(self, x: Tensor, scale: Tensor, noise: str, clamp: float | None = None) -> Tensor:
        """leaky(x * scale + noise + bias) of (N, groups * channels, H, W), scale without H, W.

        Random noise is one map for each group; the stored constant map is one for all.
        """
        maps = self._noise(x, noise) if self.has_noise and noise != "none" else None
        return clamped(_ScaleNoiseBiasLeaky.apply(x, scale, maps, self.noise_strength, self.bias), clamp)

    def _noise(self, x: Tensor, mode: str) -> Tensor:
        if mode == "const":
            return self.noise_const.to(x.dtype)
        groups = x.shape[1] // len(self.bias)
        return normal_rows((x.shape[0], groups, *x.shape[2:]), x.device).to(x.dtype)


class _ScaleNoiseBiasLeaky(torch.autograd.Function):
    """leaky(x * scale + noise * strength + bias) as one operation with its own gradient.

    In PyTorch's operations it takes a dozen forwards and two dozen backwards; in small networks the calls
    take longer than the arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, noise: Tensor | None, strength: Tensor, bias: Tensor
    ) -> Tensor:
        groups = x.shape[1] // len(bias)
        offset = (bias * LEAKY_GAIN).to(x.dtype)
        offset = (offset if groups == 1 else offset.repeat(groups)).view(-1, 1, 1)
        factor = (scale * LEAKY_GAIN).to(x.dtype)[:, :, None, None]
        y = torch.addcmul(offset, x, factor)
        if noise is not None:
            # In place on a view: adding five dimensions out of place would lose x's memory format.
            maps = noise.shape[1] if noise.dim() == 4 else 1
            added = (noise * (strength * LEAKY_GAIN).to(x.dtype)).unsqueeze(-3)
            y.unflatten(1, (maps, -1)).add_(added)
        y = F.leaky_relu_(y, LEAKY_SLOPE)
        ctx.save_for_backward(x, factor, noise, y)
        ctx.groups, ctx.kinds = groups, (scale.dtype, bias.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, noise, y = ctx.saved_tensors
        scale_kind, bias_kind = ctx.kinds
        grad = torch.ops.aten.leaky_relu_backward(grad, y, LEAKY_SLOPE, True)
        of_scale = (grad * x).sum(dim=(2, 3), dtype=scale_kind).mul_(LEAKY_GAIN)
        of_strength = None
        if noise is not None:
            maps = noise.shape[1] if noise.dim() == 4 else 1
            of_maps = grad.unflatten(1, (maps, -1)).sum(dim=2)
            of_strength = (of_maps * noise).sum(dtype=bias_kind).mul_(LEAKY_GAIN)
        of_bias = grad.sum(dim=(0, 2, 3), dtype=bias_kind).view(ctx.groups, -1).sum(dim=0).mul_(LEAKY_GAIN)
        return grad * factor, of_scale, None, of_strength, of_bias


class SynthesisLayer(NoiseBiasActivation):
    """Modulated 3x3 convolution, noise, bias and leaky ReLU (StyleGAN2, figure 2c).

    The style scales the input and the demodulation the output, which is the same as scaling the kernel but
    lets all samples share one convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        *,
        up: bool = False,
        noise: bool = True,
        clamp: float | None = None,
    ) -> None:
        super().__init__(out_channels, resolution, noise=noise)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.up, self.clamp = up, clamp

    def forward(self, x: Tensor, w: Tensor, noise: str = "random") -> Tensor:
        """(N, in, h, w) and (N, w_dim) to (N, out, resolution, resolution)."""
        weight: Tensor = self.weight
        style = self.affine(w)
        if x.dtype == torch.float16:
            weight, style = scaled_for_half(weight, style)
        x = convolve(x * style[:, :, None, None].to(x.dtype), weight, up=self.up)
        return self.finish(x, demodulation(weight, style), noise, self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to image or plane channels, without demodulation."""

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, *, clamp: float | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.style_gain = 1 / math.sqrt(in_channels)
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, in, H, W) and (N, w_dim) to (N, out, H, W)."""
        style = (self.affine(w) * self.style_gain)[:, :, None, None].to(x.dtype)
        x = F.conv2d(x * style, self.weight.to(x.dtype), self.bias.to(x.dtype))
        return clamped(x, self.clamp)
