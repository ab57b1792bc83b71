"""The results of an evaluation: metrics, costs, and the tables of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mimic3d.evaluation.metric import Estimate

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""By metric, its values by images seen in training, or by truncation."""


@dataclass(frozen=True)
class PartCost:
    """Time and memory of a part of an evaluation.

    Attributes:
        count: images or objects.
        seconds: of all workers together.
        megabytes: the most that one worker process has held.
    """

    part: str
    count: int
    seconds: float
    megabytes: float


@dataclass(frozen=True)
class Measured:
    """The metrics of a subject.

    Attributes:
        estimates: by full name, such as `fd_mobilenetv2/3d`.
        directions: the arrow of each name.
        left_out: by name, why a metric was not measured.
        facts: data set, sample sizes, seed and digests, for the run's params and tags.
        costs: of the parts, wherever and whenever they were measured.
        truncation: the curves over truncation, where they were asked for.
    """

    subject: str
    estimates: dict[str, Estimate]
    directions: dict[str, str]
    left_out: dict[str, str]
    facts: dict[str, str | int] = field(default_factory=dict)
    costs: list[PartCost] = field(default_factory=list)
    truncation: Curves = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """NAME, NAME_low and NAME_high of each metric, as they are logged."""
        return {
            key: value
            for name, estimate in self.estimates.items()
            for key, value in (
                (name, estimate.value),
                (f"{name}_low", estimate.low),
                (f"{name}_high", estimate.high),
            )
        }

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """The table that the command prints: metric, value, interval, samples, note."""
        shown = [
            (
                f"{name} {self.directions[name]}",
                f"{estimate.value:.4g}",
                f"{estimate.low:.4g} … {estimate.high:.4g}",
                str(estimate.samples),
                estimate.note,
            )
            for name, estimate in self.estimates.items()
        ]
        return shown + [
            (f"{name} {self.directions[name]}", "left out", "", "", why)
            for name, why in self.left_out.items()
        ]


def estimates_by_metric(
    measured: Sequence[Measured],
) -> Iterator[tuple[str, str, list[Estimate | None]]]:
    """Each metric of any subject with its arrow and the estimate of every subject, None where it has none."""
    names = dict.fromkeys(name for each in measured for name in (*each.estimates, *each.left_out))
    arrows = {name: arrow for each in measured for name, arrow in each.directions.items()}
    for name in names:
        yield name, arrows[name], [each.estimates.get(name) for each in measured]


def comparison(measured: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """The header and rows of a table with a column for each subject.

    Branches of generators and images without one stand in rows of their own.
    """
    rows = [
        [f"{name} {arrow}", *(f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}]" if e else "–" for e in found)]
        for name, arrow, found in estimates_by_metric(measured)
    ]
    return ["metric", *(each.subject for each in measured)], rows
