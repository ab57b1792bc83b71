"""Where networks compute in half precision: S2D and the discriminators' finest blocks, nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor


def working_dtype(precision: str, x: Tensor) -> torch.dtype:
    """The type in which a part that may be of half precision works on `x`.

    Args:
        precision: `model.precision`. "fp32" is x's own type. "mixed" is float16 on a GPU, as in the released
            networks; elsewhere, where float16 is slow or missing, x's own. "bf16" is bfloat16 everywhere.
    """
    if precision == "bf16":
        return torch.bfloat16
    return torch.float16 if precision == "mixed" and x.device.type == "cuda" else x.dtype


def allow_tf32(allowed: bool) -> None:
    """Sets, for the whole process, whether float32 products and convolutions on a GPU may take TF32.

    PyTorch allows it for convolutions unless told otherwise; the released networks were trained and measured
    without it.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def scaled_for_half(weight: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
    """A kernel and a style whose product in float16 cannot overflow (StyleGAN2-ADA's pre-normalisation).

    Demodulation divides by the norm of the two, so what they are scaled by cancels.

    Args:
        weight: (out, in, k, k), scaled to at most 1 / sqrt(fan_in) in each output channel.
        style: (N, in), scaled to at most 1 in each sample.
    """
    fan_in = weight[0].numel()
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    return weight / (largest * fan_in**0.5), style / style.abs().amax(dim=1, keepdim=True)
