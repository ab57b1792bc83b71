"""Adam with lazy regularisation, and the application of gradients over all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mimic3d.config import OptimizerConfig


def lazy_adam(
    networks: list[nn.Module], lr: float, settings: OptimizerConfig, interval: int
) -> torch.optim.Adam:
    """Adam with the rate and decays for a regularisation step every `interval` steps (StyleGAN2, appendix B).

    With c = interval / (interval + 1) the rate is lr · c, and the decays are β^c.
    """
    ratio = _share_of_main(interval)
    parameters = [parameter for network in networks for parameter in network.parameters()]
    betas = (settings.beta1**ratio, settings.beta2**ratio)
    optimizer = torch.optim.Adam(parameters, lr=lr * ratio, betas=betas, eps=1e-8, fused=True)
    optimizer.register_load_state_dict_post_hook(_lay_out_moments)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float, interval: int) -> None:
    """Sets the rate of a `lazy_adam` of this `interval` to lr · interval / (interval + 1)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * _share_of_main(interval)


def _share_of_main(interval: int) -> float:
    """interval / (interval + 1): the share of steps that are not regularisation steps."""
    return interval / (interval + 1)


def _lay_out_moments(optimizer: torch.optim.Optimizer) -> None:
    """Gives loaded moments the memory format of their parameters, which fused Adam assumes."""
    for parameter, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name] = torch.empty_like(parameter).copy_(state[name])


def apply_gradients(optimizer: torch.optim.Optimizer, world_size: int) -> Tensor:
    """Averages gradients over the ranks, replaces non-finite ones and steps; returns the gradient's norm.

    NaN becomes 0 and ±infinity ±1e5 (StyleGAN2-ADA). The norm is that before the replacement.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([_in_memory_order(parameter) for parameter in parameters])
    if world_size > 1:
        dist.all_reduce(flat)
        flat /= world_size
    norm = flat.norm()
    torch.nan_to_num(flat, nan=0.0, posinf=1e5, neginf=-1e5, out=flat)
    offset = 0
    for parameter in parameters:
        parameter.grad = flat.as_strided(parameter.shape, parameter.stride(), offset)
        offset += parameter.numel()
    optimizer.step()
    return norm


def _in_memory_order(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient as a vector, in the order in which the parameter itself lies in memory."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    return gradient.as_strided((gradient.numel(),), (1,))
