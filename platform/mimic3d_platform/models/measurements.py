"""The metrics of registered versions as they were measured, and the comparison of two versions by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mimic3d.evaluation.registry import lower_is_better
from mimic3d_platform.models.model_card import HIGH, LOW
from mimic3d_platform.models.registry import logged_model_of
from mimic3d_platform.tracking.server import client, tracking_errors
from mimic3d_platform.tracking.tags import DATA_TAG

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_SIZES_OF_TRAINING = ("output.metric_images", "output.metric_identities")
# Facts of an evaluation, beside its data set and sizes, that have to be equal.
_DETAILS = ("views", "seed", "metrics version")


class Measurement(NamedTuple):
    """A metric of a version, with the ends of its interval; both ends are the value if it has none."""

    value: float
    low: float
    high: float
    measured_on: Conditions

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


class Conditions(NamedTuple):
    """The data and the protocol of a measurement: values are compared only where these are the same."""

    data: str
    images: str
    identities: str
    protocol: str
    """A training's own, or that of `mimic3d evaluate` with its number of views and its seed."""


@dataclass(frozen=True)
class Comparison:
    """One metric of the candidate and of the present version."""

    metric: str
    candidate: Measurement
    present: Measurement

    @property
    def better(self) -> bool:
        """True if the candidate is better and the intervals do not overlap."""
        if lower_is_better(self.metric):
            return self.candidate.high < self.present.low
        return self.candidate.low > self.present.high

    @property
    def worse(self) -> bool:
        """True if the candidate is worse and the intervals do not overlap."""
        if lower_is_better(self.metric):
            return self.candidate.low > self.present.high
        return self.candidate.high < self.present.low

    def __str__(self) -> str:
        return f"{self.metric} {self.candidate} against {self.present}"


def measurements(version: ModelVersion) -> dict[str, list[Measurement]]:
    """The metrics of a version's logged model by name, each measurement once, newest first.

    An interval is that of the metrics `NAME_low` and `NAME_high` of the same run and step.
    """
    logged = logged_model_of(version)
    points = list(logged.metrics or ()) if logged else []
    values = {(point.key, point.run_id, point.step): float(point.value) for point in points}
    conditions: dict[str, Conditions] = {}
    found: dict[str, list[Measurement]] = {}
    for point in sorted(points, key=lambda point: (point.timestamp, point.step), reverse=True):
        name, of = str(point.key), (point.run_id, point.step)
        if name.endswith((LOW, HIGH)) and (name.removesuffix(LOW).removesuffix(HIGH), *of) in values:
            continue
        run_id = str(point.run_id)
        if run_id not in conditions:
            conditions[run_id] = _conditions(run_id)
        low, high = (values.get((f"{name}{end}", *of), float(point.value)) for end in (LOW, HIGH))
        found.setdefault(name, []).append(Measurement(float(point.value), low, high, conditions[run_id]))
    return found


def comparisons(candidate: ModelVersion, present: ModelVersion) -> list[Comparison]:
    """The newest measurement of each metric that both versions have under the same conditions, by name."""
    ours, theirs = measurements(candidate), measurements(present)
    found = []
    for name in sorted(ours.keys() & theirs.keys()):
        pairs = [(a, b) for a in ours[name] for b in theirs[name] if a.measured_on == b.measured_on]
        if pairs:
            found.append(Comparison(name, *pairs[0]))
    return found


def _conditions(run_id: str) -> Conditions:
    """The conditions of a run's metrics; unknown values make them comparable with no other run's."""
    with tracking_errors("look up a run in"):
        data = client().get_run(run_id).data
    unknown = f"unknown to run {run_id}"
    evaluated = "evaluation.images" in data.params
    sizes = ("evaluation.images", "evaluation.objects") if evaluated else _SIZES_OF_TRAINING
    details = [f"{key} {data.params.get(f'evaluation.{key}')}" for key in _DETAILS]
    images, identities = (data.params.get(size) or unknown for size in sizes)
    protocol = f"evaluation, {', '.join(details)}" if evaluated else "training"
    return Conditions(data.tags.get(DATA_TAG) or unknown, images, identities, protocol)
