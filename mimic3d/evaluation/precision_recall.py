"""Precision and recall of generated images (Kynkäänniemi et al., 2019): fidelity and coverage apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 3


class PrecisionRecall(NamedTuple):
    """Precision and recall, from 0 to 1."""

    precision: float
    """Share of generated images that lie in the reals' manifold."""
    recall: float
    """Share of real images that lie in the generated images' manifold."""

    def metrics(self, extractor: str, branch: str) -> dict[str, float]:
        """Both by name, of extractor and branch: `precision_mobilenetv2/3d`."""
        return {f"{name}_{extractor}/{branch}": value for name, value in self._asdict().items()}


def precision_recall(
    reals: Tensor, generated: Tensor, neighbours: int = NEIGHBOURS, block: int = 4096
) -> PrecisionRecall:
    """Precision and recall of generated images, from their features.

    A manifold is the union of balls around the features, each with the k-th nearest neighbour on its surface.

    Args:
        reals: (n, D).
        generated: (m, D).
        neighbours: k.
        block: rows whose distances are in memory at a time.
    Raises:
        ValueError: at most `neighbours` features of either kind.
    """
    if min(len(reals), len(generated)) <= neighbours:
        raise ValueError(f"precision and recall need more than {neighbours} images of either kind")
    return PrecisionRecall(
        _share_within(generated, reals, neighbours, block), _share_within(reals, generated, neighbours, block)
    )


def _share_within(points: Tensor, manifold: Tensor, neighbours: int, block: int) -> float:
    # The nearest neighbour of a feature is itself, at distance 0.
    radii = torch.cat(
        [_distances(part, manifold).kthvalue(neighbours + 1, dim=1).values for part in manifold.split(block)]
    )
    inside = [(_distances(part, manifold) <= radii).any(dim=1) for part in points.split(block)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
