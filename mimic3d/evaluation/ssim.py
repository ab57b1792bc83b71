"""Structural similarity (Wang et al., 2004), with a Gaussian window of σ 1.5."""

from __future__ import annotations

from torch import Tensor

from mimic3d.evaluation.detail import gaussian_blur

_SIGMA = 1.5
# The paper's constants, for a range of 2.
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """(V, 1, R, R): the similarity around each pixel of images (V, 3, R, R) in [-1, 1], mean of channels."""
    mean_a, mean_b = gaussian_blur(a, _SIGMA), gaussian_blur(b, _SIGMA)
    var_a = gaussian_blur(a * a, _SIGMA) - mean_a.square()
    var_b = gaussian_blur(b * b, _SIGMA) - mean_b.square()
    covariance = gaussian_blur(a * b, _SIGMA) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return (likeness / ((mean_a.square() + mean_b.square() + _C1) * (var_a + var_b + _C2))).mean(1, True)
