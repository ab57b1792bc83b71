"""The non-saturating logistic GAN loss and its gradient penalty."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Mean f(-D(fake)), f = softplus (Goodfellow et al., 2014, sec. 3)."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(
    fake_logits: Tensor, real_logits: Tensor, real_weights: Tensor | None = None
) -> Tensor:
    """Mean f(D(fake)) + f(-D(real)), f = softplus; f(-D(real)) is multiplied by `real_weights` (N,)."""
    on_reals = F.softplus(-real_logits)
    if real_weights is not None:
        on_reals = on_reals * real_weights[:, None]
    return F.softplus(fake_logits).mean() + on_reals.mean()


def r1_penalty(real_logits: Tensor, inputs: list[Tensor]) -> Tensor:
    """The squared norm of the logits' gradient in all of `inputs`, per sample (Mescheder et al., 2018).

    Args:
        real_logits: (N, 1), on real images.
        inputs: the (N, C, H, W) tensors that the discriminator was given; they require gradients.
    Returns:
        (N,), differentiable, without the factor gamma / 2.
    """
    gradients = torch.autograd.grad(real_logits.sum(), inputs, create_graph=True)
    squares = [gradient.square().sum(dim=(1, 2, 3)) for gradient in gradients]
    return sum(squares[1:], start=squares[0])
