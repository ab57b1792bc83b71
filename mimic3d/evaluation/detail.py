"""Detail of images in frequency bands, and how far the detail of two images agrees.

PSNR favours images without detail: where nothing varies, nothing disagrees. The correlation of detail has no
such reward. In a band, two equal images have 1, unrelated ones 0, and images without detail 0 too, because
`FLOOR` or `FINE_FLOOR` counts as noise that no two views share. Blur scales a band of both images alike, so
it does not raise the correlation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Standard deviations, pixels, of the Gaussians whose differences are the bands: from the finest detail to
# shapes of some ten pixels.
SIGMAS = (0.0, 0.6, 1.2, 2.4)
BANDS = len(SIGMAS) - 1
# The standard deviation of noise, for images in [-1, 1]: 2.5 of 256 levels for images that were interpolated,
# whose loss blur hides, and 0.9 for others. With smaller ones blur raises the headline figures.
FLOOR, FINE_FLOOR = 0.02, 0.007


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, W) blurred with a standard deviation of `sigma` pixels; the border is repeated."""
    if sigma <= 0:
        return images
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma).square())
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(rows, kernel.transpose(-1, -2), groups=images.shape[1])


def bands(images: Tensor) -> Tensor:
    """(N, BANDS·C, H, W): differences of Gaussians of images (N, C, H, W), finest first."""
    blurred = [gaussian_blur(images, sigma) for sigma in SIGMAS]
    return torch.cat([fine - coarse for fine, coarse in itertools.pairwise(blurred)], dim=1)


def band_sums(a: Tensor, b: Tensor, mask: Tensor) -> list[float]:
    """The sums that `correlation` needs, for each band: Σab, Σ(a² + b²)/2 and the number of values.

    Args:
        a, b: (N, BANDS·C, H, W), of `bands`.
        mask: (N, 1, H, W) bool, the pixels that count.
    """
    sums: list[float] = []
    for first, second in zip(a.chunk(BANDS, dim=1), b.chunk(BANDS, dim=1), strict=True):
        where = mask.expand_as(first)
        x, y = first[where].double(), second[where].double()
        sums += [float((x * y).sum()), float((x.square() + y.square()).sum() / 2), float(len(x))]
    return sums


def correlation(sums: Tensor | Sequence[float], floor: float = FLOOR) -> float:
    """The mean over bands of Σab / (Σ(a² + b²)/2 + n·floor²); NaN if no value was compared."""
    table = torch.as_tensor(sums, dtype=torch.float64).view(BANDS, 3)
    if not table[0, 2] > 0:
        return math.nan
    return float((table[:, 0] / (table[:, 1] + table[:, 2] * floor**2)).mean())
