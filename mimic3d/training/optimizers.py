"""Adam with lazy regularisation, and the application of gradients over all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mimic3d.config import OptimizerConfig


def lazy_adam(
    networks: list[nn.Module], lr: float, settings: OptimizerConfig, interval: int
) -> torch.optim.Adam:
    """Adam whose rate and decays allow for a regularisation step every `interval` (StyleGAN2, appendix B)."""
    ratio = interval / (interval + 1)
    parameters = [parameter for network in networks for parameter in network.parameters()]
    betas = (settings.beta1**ratio, settings.beta2**ratio)
    return torch.optim.Adam(parameters, lr=lr * ratio, betas=betas, eps=1e-8, foreach=True)


def apply_gradients(optimizer: torch.optim.Optimizer, world_size: int) -> Tensor:
    """Averages gradients over the ranks, mends non-finite ones, steps; returns the gradient's norm.

    NaN becomes 0 and an infinity 1e5 of its sign (StyleGAN2-ADA).
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    if world_size > 1:
        dist.all_reduce(flat)
        flat /= world_size
    norm = flat.norm()
    torch.nan_to_num(flat, nan=0.0, posinf=1e5, neginf=-1e5, out=flat)
    mended = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [m.view_as(g) for m, g in zip(mended, gradients, strict=True)])
    optimizer.step()
    return norm
