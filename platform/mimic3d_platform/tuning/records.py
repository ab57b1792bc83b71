"""What a sweep remembers: a JSON file for each trial, in the sweep's folder among the runs.

The next trial is a function of these records and the sweep's seed, so a sweep that was killed goes on from
them: no other state is kept.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.tuning.space import Point
from mimic3d_platform.tuning.sweep import Objective

FOLDER = "trials"
Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One point of the space and what became of it.

    Attributes:
        index: from 0, in the order of starting.
        point: a value for each path.
        generation: of a population, else 0;  member: its place in the population.
        parent: index of the trial whose weights it started from; None: from the sweep's stage 1, or scratch.
        status: `stopped` is early, by the scheduler.
        reports: what it measured on the way, each with `nimg`.
        metrics: what it measured last.
        seconds: spent in training steps.
    """

    index: int
    name: str
    point: Point
    generation: int = 0
    member: int = 0
    parent: int | None = None
    status: Status = "running"
    reports: tuple[dict[str, float], ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    nimg: int = 0
    seconds: float = 0.0
    checkpoint_uri: str = ""
    run_id: str = ""
    error: str = ""

    @property
    def kimg(self) -> float:
        return self.nimg / 1000

    @property
    def over(self) -> bool:
        return self.status != "running"

    def scores(self, objectives: Iterable[Objective]) -> list[float] | None:
        """Its value of each objective; None where it has not been measured, or is no number."""
        values = [self.metrics.get(objective.metric, math.nan) for objective in objectives]
        return values if all(map(math.isfinite, values)) else None

    def measured(self, nimg: int, metrics: dict[str, float]) -> Trial:
        """The trial with another report, unless it has one of that moment."""
        if any(report["nimg"] == nimg for report in self.reports):
            return self
        report = {"nimg": nimg, **metrics}
        return replace(self, reports=(*self.reports, report), metrics=dict(metrics), nimg=nimg)


class Records:
    """The trials of one sweep in storage."""

    def __init__(self, sweep_uri: str) -> None:
        self._uri = storage.join(sweep_uri, FOLDER)
        self._trials = {trial.index: trial for trial in map(_read, storage.list_files(self._uri, ".json"))}
        self._unsaved: set[int] = set()

    def all(self) -> list[Trial]:
        """Every trial, by index."""
        return [self._trials[index] for index in sorted(self._trials)]

    def before_next(self) -> list[Trial]:
        """The trials before the next one. That is the first of which there is no record, since one that is
        deleted is to run again."""
        count = next(index for index in itertools.count() if index not in self._trials)
        return [self._trials[index] for index in range(count)]

    def __getitem__(self, index: int) -> Trial:
        return self._trials[index]

    def put(self, trial: Trial) -> None:
        """Keeps a trial as it is now.

        A store that is away does not end a sweep: what it missed is written with the next trial, or by
        `flush`.
        """
        self._trials[trial.index] = trial
        self._unsaved.add(trial.index)
        try:
            self.flush()
        except UserError:
            return

    def flush(self) -> None:
        """Writes what is not yet in storage.

        Raises:
            UserError: storage does not take it.
        """
        for index in sorted(self._unsaved):
            text = json.dumps(asdict(self._trials[index]), indent=1)
            storage.write_bytes(storage.join(self._uri, f"{index:03d}.json"), text.encode())
            self._unsaved.discard(index)


def _read(uri: str) -> Trial:
    try:
        values: dict[str, Any] = json.loads(storage.read_bytes(uri))
        point = {path: _hashable(value) for path, value in values.pop("point").items()}
        return Trial(point=point, **values | {"reports": tuple(values["reports"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{uri} is no record of a trial ({error}): delete it to run the trial again"
        ) from error


def _hashable(value: Any) -> Any:
    """Tuples are lists in JSON; values of a list parameter are compared with what the file reads back."""
    return tuple(value) if isinstance(value, list) else value
