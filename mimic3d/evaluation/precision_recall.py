"""Precision and recall of generated images (Kynkäänniemi et al., 2019): fidelity and coverage apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 3


class PrecisionRecall(NamedTuple):
    """Shares, 0 to 1."""

    precision: float
    """Of generated images that lie within the reals' manifold."""
    recall: float
    """Of real images that lie within the generated ones'."""

    def metrics(self, extractor: str, branch: str) -> dict[str, float]:
        """Under names that say extractor and branch: `precision_mobilenetv2/3d`."""
        return {f"{name}_{extractor}/{branch}": value for name, value in self._asdict().items()}


def precision_recall(
    reals: Tensor, generated: Tensor, neighbours: int = NEIGHBOURS, block: int = 4096
) -> PrecisionRecall:
    """Of features (n, D) and (m, D), by manifolds of balls that reach each feature's k-th nearest neighbour.

    Args:
        block: rows whose distances are held at once.
    Raises:
        ValueError: too few features to have that many neighbours.
    """
    if min(len(reals), len(generated)) <= neighbours:
        raise ValueError(f"precision and recall need more than {neighbours} images of either kind")
    return PrecisionRecall(
        _share_within(generated, reals, neighbours, block), _share_within(reals, generated, neighbours, block)
    )


def _share_within(points: Tensor, manifold: Tensor, neighbours: int, block: int) -> float:
    # The nearest of all is the feature itself, at distance 0.
    radii = torch.cat(
        [_distances(part, manifold).kthvalue(neighbours + 1, dim=1).values for part in manifold.split(block)]
    )
    inside = [(_distances(part, manifold) <= radii).any(dim=1) for part in points.split(block)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
