"""Fidelity over truncation: what a generator loses in variety for what it gains in quality."""

from __future__ import annotations

import contextlib

from torch import Tensor

from mimic3d.evaluation.fidelity import FrechetDistance, Precision, Recall
from mimic3d.evaluation.frechet import FeatureStatistics
from mimic3d.evaluation.metric import FeatureSets
from mimic3d.features.registry import EXTRACTORS
from mimic3d_platform.evaluation.measured import Curves
from mimic3d_platform.evaluation.pieces import GENERATED, Plan, concatenated, stored, truncated

TRUNCATIONS = (0.5, 0.7, 0.85)
_METRICS = (FrechetDistance(), Precision(), Recall())


def truncation_curves(plan: Plan, statistics: FeatureStatistics, reals: Tensor) -> Curves:
    """Fréchet distance, precision and recall of each truncation, all of the same number of images.

    Args:
        statistics: of all real images.
        reals: (n, D) features of some of them.
    """
    kinds = {truncation: truncated(truncation) for truncation in plan.truncations}
    if kinds:
        kinds[1.0] = GENERATED
    curves: dict[str, list[tuple[float, float]]] = {}
    extractor = EXTRACTORS[plan.network].name
    for branch in plan.subject.branches:
        for truncation, what in kinds.items():
            generated = concatenated(list(stored(plan, what, branch)))[: plan.truncated_images]
            features = FeatureSets(extractor, reals, statistics, generated)
            for metric in _METRICS:
                # Too few images have no precision; `Measured.left_out` says so.
                with contextlib.suppress(ValueError):
                    value = metric.estimate(features).value
                    curves.setdefault(f"{metric.name(extractor)}/{branch}", []).append((truncation, value))
    return curves
