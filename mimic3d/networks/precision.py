"""Numeric precision: half precision in S2D and the discriminators' finest blocks, and TF32."""

from __future__ import annotations

import torch
from torch import Tensor


def working_dtype(precision: str, x: Tensor) -> torch.dtype:
    """The type in which S2D and the discriminators' finest blocks compute on `x`.

    Args:
        precision: `model.precision`. "fp32" is x's own type. "mixed" is float16 on a GPU, as in the released
            networks; elsewhere, where float16 is slow or missing, x's own. "bf16" is bfloat16 everywhere.
    """
    if precision == "bf16":
        return torch.bfloat16
    return torch.float16 if precision == "mixed" and x.device.type == "cuda" else x.dtype


def allow_tf32(allowed: bool) -> None:
    """Allows or forbids TF32 in float32 products and convolutions on GPUs, for the whole process.

    PyTorch allows it in convolutions by default; the released networks were trained and measured without it.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def scaled_for_half(weight: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """Scales a kernel and a style so that float16 cannot overflow (StyleGAN2-ADA's pre-normalisation).

    The factors cancel in the demodulation, which divides by the norm of the product.

    Args:
        weight: (out, in, k, k), scaled to at most 1 / sqrt(fan_in) in each output channel.
        style: (N, in), scaled to at most 1 in each sample.
    """
    fan_in = weight[0].numel()
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    return weight / (largest * fan_in**0.5), style / style.abs().amax(dim=1, keepdim=True)
