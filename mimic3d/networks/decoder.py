"""The decoder, a small MLP from tri-plane features to density and colour features."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimic3d.networks.layers import FullyConnected


class Decoder(nn.Module):
    """Decodes C plane features to 1 raw density and C features in [0, 1], the first three of them RGB."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels
        # Numbered as in the released checkpoints, where 1 is the activation.
        self.net = nn.ModuleDict(
            {"0": FullyConnected(channels, hidden), "2": FullyConnected(hidden, 1 + channels)}
        )

    def forward(self, features: Tensor, outputs: int | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: (..., C).
            outputs: the number of features that are computed (3 is RGB); all when None.
        Returns:
            raw density (..., 1) and features (..., outputs) in [-0.001, 1.001].
        """
        hidden = _softplus(self.net["0"](features))
        last = self.net["2"]
        assert isinstance(last, FullyConnected)
        rows = slice(None if outputs is None else 1 + outputs)
        x = F.linear(hidden, last.weight[rows] * last.weight_gain, last.bias[rows])
        return x[..., :1], torch.sigmoid(x[..., 1:]) * (1 + 2 * 0.001) - 0.001


def _softplus(x: Tensor) -> Tensor:
    return _CpuSoftplus.apply(x) if x.device.type == "cpu" else F.softplus(x)


class _CpuSoftplus(torch.autograd.Function):
    """Softplus by sigmoid and log, which PyTorch vectorises on CPUs, unlike log1p."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu() - x.abs().sigmoid_().log_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.sigmoid()
