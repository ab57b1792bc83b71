"""Computes the metrics of an evaluation from the pieces that its workers stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from torch import Tensor

from mimic3d.evaluation import registry
from mimic3d.evaluation.frechet import FeatureStatistics
from mimic3d.evaluation.metric import ARROWS, Estimate, FeatureSets, Metric, Need, ViewMetric
from mimic3d.features.registry import EXTRACTORS
from mimic3d_platform.evaluation.measured import Measured, PartCost
from mimic3d_platform.evaluation.pieces import (
    GENERATED,
    OTHER_CAMERA,
    REALS,
    SHAPES,
    VERSION,
    VIEWS,
    Plan,
    branch_key,
    concatenated,
    stored,
    sum_costs,
)
from mimic3d_platform.evaluation.subject import Subject
from mimic3d_platform.evaluation.truncation import truncation_curves
from mimic3d_platform.storage.uris import without_login

# Reals and generated images whose nearest neighbours are looked for, and whose kernels are summed, at most.
NEIGHBOURS = 10_000

# Needs that no subject has to meet.
_OURS: frozenset[Need] = frozenset({"field", "face model"})

_Found = tuple[Metric, Callable[[], Estimate]]
"""A metric, and the function that estimates it or raises ValueError with the reason why it cannot."""


def merge_pieces(plan: Plan, costs: Sequence[PartCost]) -> Measured:
    """The metrics of all stored pieces; those that cannot be had, with their reasons."""
    statistics, reals = _reals(plan)
    extractor = EXTRACTORS[plan.network].name
    estimates: dict[str, Estimate] = {}
    directions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    found = [(branch, _of_branch(plan, branch, statistics, reals)) for branch in plan.subject.branches]
    for branch, metrics in (*found, (registry.DIFFERENCE, _differences(plan))):
        for metric, estimate in metrics:
            name = f"{metric.name(extractor)}/{branch}"
            directions[name] = ARROWS[metric.direction]
            try:
                estimates[name] = estimate()
            except ValueError as error:
                left_out[name] = str(error)
    facts: dict[str, str | int] = {
        "data": without_login(plan.data_uri),
        "resolution": plan.data.resolution,
        "images": plan.images,
        "objects": plan.objects,
        "views": plan.views,
        "seed": plan.seed,
        "metrics version": VERSION,
        "extractor": plan.network,
        "extractor sha256": plan.network_sha256,
        "data fingerprint": plan.data.fingerprint,
        "real images": plan.data.count,
    }
    curves = truncation_curves(plan, statistics, reals)
    return Measured(plan.subject.uri, estimates, directions, left_out, facts, sum_costs(costs), curves)


def _of_branch(plan: Plan, branch: str, statistics: FeatureStatistics, reals: Tensor) -> Iterator[_Found]:
    yield from _fidelity(plan, branch, _features(plan, branch, statistics, reals))
    yield from _views(plan, branch)
    yield from _shapes(plan, branch)


def _features(plan: Plan, branch: str, statistics: FeatureStatistics, reals: Tensor) -> FeatureSets:
    generated = concatenated(list(stored(plan, GENERATED, branch)))
    other = list(stored(plan, OTHER_CAMERA, branch))
    extractor = EXTRACTORS[plan.network].name
    return FeatureSets(extractor, reals, statistics, generated, concatenated(other) if other else None)


def _fidelity(plan: Plan, branch: str, features: FeatureSets) -> Iterator[_Found]:
    few = replace(features, generated=features.generated[:NEIGHBOURS], other_camera=None)
    for metric in registry.FIDELITY:
        if metric.extractor in (None, features.extractor):
            lacking = lacking_of(metric, plan.subject, branch)
            chosen = features if metric.of_all_images else few
            yield metric, partial(_fails, lacking) if lacking else partial(metric.estimate, chosen)


def _views(plan: Plan, branch: str) -> Iterator[_Found]:
    for metric in registry.VIEWS:
        if "face model" in metric.needs and not plan.faces:
            continue
        lacking = lacking_of(metric, plan.subject, branch)
        if metric.network not in (None, plan.perceptual):
            lacking = f"the perceptual distance is {plan.perceptual}"
        elif not lacking and metric.kind not in plan.view_metrics:
            lacking = "no field is fitted (--no-fields)"
        yield metric, partial(_fails, lacking) if lacking else partial(_of_views, plan, metric, branch)


def _of_views(plan: Plan, metric: ViewMetric, branch: str) -> Estimate:
    return metric.estimate(_parts(plan, metric, branch), plan.seed)


def _differences(plan: Plan) -> Iterator[_Found]:
    """Differences of the 3D and the 2D branch on the same objects, of a generator that has both."""
    if {"2d", "3d"} <= set(plan.subject.branches):
        for metric in registry.VIEWS:
            if metric.kind in registry.COMPARED and metric.kind in plan.view_metrics:
                yield metric, partial(_difference, plan, metric)


def _difference(plan: Plan, metric: ViewMetric) -> Estimate:
    parts, others = (_parts(plan, metric, branch) for branch in ("3d", "2d"))
    if len(parts) != len(others):
        raise ValueError("the branches were not measured on the same objects")
    return metric.difference(parts, others, plan.seed)


def _parts(plan: Plan, metric: ViewMetric, branch: str) -> Tensor:
    """(objects, K): the sums of every object of which the subject has several views."""
    parts = list(stored(plan, VIEWS, branch_key(metric.kind, branch)))
    if not parts:
        raise ValueError("no object with several views")
    return concatenated(parts)


def _shapes(plan: Plan, branch: str) -> Iterator[_Found]:
    if plan.known_shapes is not None:
        parts = concatenated(list(stored(plan, SHAPES, branch)))
        yield from ((metric, partial(metric.estimate, parts)) for metric in registry.SHAPES)


def _fails(reason: str) -> Estimate:
    raise ValueError(reason)


def _reals(plan: Plan) -> tuple[FeatureStatistics, Tensor]:
    """Statistics of all real images, and the features of at most `NEIGHBOURS` of them."""
    statistics: FeatureStatistics | None = None
    kept: list[Tensor] = []
    for features in stored(plan, REALS, REALS):
        statistics = statistics or FeatureStatistics.empty(features.shape[1])
        statistics.add(features)
        if sum(map(len, kept)) < NEIGHBOURS:
            kept.append(features)
    assert statistics is not None
    return statistics, next(islice(concatenated(kept).split(NEIGHBOURS), 1))


def lacking_of(metric: Metric, subject: Subject, branch: str) -> str:
    """Why a metric cannot be measured; "" if it can."""
    lacking = [need for need in metric.needs if need not in subject.has | _OURS]
    if "both branches" in metric.needs and branch == "2d":
        return "compares the 3D branch with this one"
    return f"{subject.uri} has no {' and no '.join(lacking)}" if lacking else ""
