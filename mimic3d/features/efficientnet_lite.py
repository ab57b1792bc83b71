"""The first five of seven stages of EfficientNet-Lite2 (Tan and Le, 2019; Google's "lite" variant of 2020).

The lite variants have ReLU6 in place of swish, no squeeze-and-excitation, and a stem of fixed width.
Strided convolutions pad as TensorFlow does: more at the bottom and right where the padding is odd.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Of each of the first five stages: blocks, kernel, stride of the first block, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
)
STEM, MIDDLE = 32, 120
_EPSILON = 1e-3


class SameConv(nn.Conv2d):
    """A convolution whose output has ⌈input / stride⌉ pixels along each side, as TensorFlow's "same"."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) to (N, out, ⌈H / stride⌉, ⌈W / stride⌉)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[-2], x.shape[-1])
        )
        return super().forward(F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)))


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs, eps=_EPSILON)]


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; with a skip where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [*_layer(inputs, inner, 1), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*_layer(inner, inner, kernel, stride, inner), nn.ReLU6()]
        self.layers = nn.Sequential(*expand, *depthwise, *_layer(inner, outputs, 1))
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        out = self.layers(x)
        return x + out if self.skip else out


def efficientnet_lite2_middle() -> nn.Sequential:
    """The layers from an image (N, 3, H, W) in about [-1, 1] to (N, 120, ⌈H/16⌉, ⌈W/16⌉)."""
    blocks: list[nn.Module] = []
    inputs = STEM
    for count, kernel, stride, expansion, outputs in STAGES:
        for index in range(count):
            blocks.append(InvertedResidual(inputs, outputs, kernel, 1 if index else stride, expansion))
            inputs = outputs
    return nn.Sequential(nn.Sequential(*_layer(3, STEM, 3, 2), nn.ReLU6()), *blocks)
