"""Balls around features with a nearest neighbour on their surface, and which other features lie in them.

Precision and recall (Kynkäänniemi et al., 2019), density and coverage (Naeem et al., 2020) and authenticity
(Alaa et al., 2022) count with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows whose distances are in memory at a time.
_BLOCK = 4096


def ball_radii(features: Tensor, neighbours: int, block: int = _BLOCK) -> Tensor:
    """(n,) distances of features (n, D) to the k-th nearest of the others.

    Args:
        neighbours: k.
        block: rows whose distances are in memory at a time.
    Raises:
        ValueError: k or fewer features.
    """
    if len(features) <= neighbours:
        raise ValueError(f"nearest neighbours need more than {neighbours} images of either kind")
    # The nearest neighbour of a feature is itself, at distance 0.
    parts = (_distances(part, features).kthvalue(neighbours + 1, dim=1) for part in features.split(block))
    return torch.cat([part.values for part in parts])


def balls_around(points: Tensor, centres: Tensor, radii: Tensor, block: int = _BLOCK) -> Tensor:
    """(m,) int64: how many of the balls (n, D), (n,) each point (m, D) lies in."""
    return torch.cat([(_distances(part, centres) <= radii).sum(dim=1) for part in points.split(block)])


def balls_hit(points: Tensor, centres: Tensor, radii: Tensor, block: int = _BLOCK) -> Tensor:
    """(n,) bool: whether any point (m, D) lies in each of the balls (n, D), (n,)."""
    parts = zip(centres.split(block), radii.split(block), strict=True)
    return torch.cat([(_distances(part, points) <= radius[:, None]).any(dim=1) for part, radius in parts])


def nearest_centres(points: Tensor, centres: Tensor, block: int = _BLOCK) -> tuple[Tensor, Tensor]:
    """(m,) distances of points (m, D) to the nearest of the centres (n, D), and (m,) its number."""
    parts = [_distances(part, centres).min(dim=1) for part in points.split(block)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
