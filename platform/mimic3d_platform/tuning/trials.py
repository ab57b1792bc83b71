"""The trials of a sweep: what each one trains, what became of it, and its record in storage.

The next trial is a function of these records and the sweep's seed. They are all the state that a sweep has,
and what it resumes from.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mimic3d.config import Config, override
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.tuning.schema import Objective, Pbt, Sweep
from mimic3d_platform.tuning.space import Point, Value

FOLDER = "trials"
Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """A trial: a point of the space, its state and its result.

    Attributes:
        index: from 0, in the order of starting.
        name: of its run.
        point: a value for each path.
        generation: of a population; else 0.
        member: its place in the population; else 0.
        parent: the index of the trial whose weights it starts from; None where it starts from the sweep's
            stage 1, or from scratch.
        status: `stopped` is early, by the scheduler.
        reports: its measurements, each with `nimg`.
        metrics: its last measurement.
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
        """Thousands of images consumed."""
        return self.nimg / 1000

    @property
    def ended(self) -> bool:
        """Whether it has finished, was stopped or has failed."""
        return self.status != "running"

    def scores(self, objectives: Iterable[Objective]) -> list[float] | None:
        """The trial's value of each objective; None where one was not measured or is not finite."""
        values = [self.metrics.get(objective.metric, math.nan) for objective in objectives]
        return values if all(map(math.isfinite, values)) else None

    def with_measurement(self, nimg: int, metrics: dict[str, float]) -> Trial:
        """The trial with one more measurement, unless it has one at `nimg`."""
        if any(report["nimg"] == nimg for report in self.reports):
            return self
        report = {"nimg": nimg, **metrics}
        return replace(self, reports=(*self.reports, report), metrics=dict(metrics), nimg=nimg)


@dataclass(frozen=True)
class SweepRun:
    """Settings that the trials of a sweep share.

    Attributes:
        sweep: with the metrics' names as the runs log them.
        name: of the sweep; its trials' runs are NAME-000, NAME-001, ….
        stage1_uri: the checkpoint that trials start from, or "".
        parent_run_id: the sweep's run in MLflow.
        concurrency: trials at once.
    """

    sweep: Sweep
    name: str
    runs_uri: str
    stage1_uri: str
    parent_run_id: str
    concurrency: int


def trial_config(sweep: Sweep, trial: Trial, stage1_uri: str, trials: Sequence[Trial]) -> Config:
    """The config that a trial trains.

    Args:
        stage1_uri: the checkpoint that all trials start from; "" where each trains its own stage 1.
        trials: at least the trial's parent.
    """
    changes = sweep.points.overrides(trial.point)
    if stage1_uri:
        changes |= {"start": stage1_uri, "schedule.stage1_kimg": 0.0}
    if isinstance(sweep.scheduler, Pbt):
        # Each generation is a run of its own. With its parent's seed it would see its parent's images again.
        changes |= {
            "schedule.stage2_kimg": sweep.scheduler.interval_kimg,
            "seed": sweep.base.seed + trial.generation,
        }
        if trial.parent is not None:
            [parent] = (other for other in trials if other.index == trial.parent)
            changes |= {"start": parent.checkpoint_uri, "schedule.stage1_kimg": 0.0}
    return override(sweep.base, changes)


class TrialRecords:
    """The trials of one sweep in storage, a JSON file each."""

    def __init__(self, sweep_uri: str) -> None:
        self._uri = storage.join(sweep_uri, FOLDER)
        self._trials = {trial.index: trial for trial in map(_read, storage.list_files(self._uri, ".json"))}
        self._unwritten: set[int] = set()

    def all(self) -> list[Trial]:
        """Every trial, by index."""
        return [self._trials[index] for index in sorted(self._trials)]

    def before_next(self) -> list[Trial]:
        """The trials before the next one.

        The next index is the first without a record: a trial whose record was deleted is run again.
        """
        count = next(index for index in itertools.count() if index not in self._trials)
        return [self._trials[index] for index in range(count)]

    def __getitem__(self, index: int) -> Trial:
        return self._trials[index]

    def put(self, trial: Trial) -> None:
        """Keeps a trial as it is now.

        Storage that is away does not end the sweep: what could not be written is written by the next `put`
        or `flush`.
        """
        self._trials[trial.index] = trial
        self._unwritten.add(trial.index)
        try:
            self.flush()
        except UserError:
            return

    def flush(self) -> None:
        """Writes the records that are not yet in storage.

        Raises:
            UserError: storage does not answer or refuses.
        """
        for index in sorted(self._unwritten):
            text = json.dumps(asdict(self._trials[index]), indent=1)
            storage.write_bytes(storage.join(self._uri, f"{index:03d}.json"), text.encode())
            self._unwritten.discard(index)


def _read(uri: str) -> Trial:
    text = storage.read_bytes(uri)
    try:
        values: dict[str, Any] = json.loads(text)
        point = {path: _hashable(value) for path, value in values.pop("point").items()}
        return Trial(point=point, **values | {"reports": tuple(values["reports"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{uri} is no record of a trial ({error}): delete it to run the trial again"
        ) from error


def _hashable(value: Any) -> Value:
    """JSON has no tuples; values of a list parameter are compared with the tuples that the file gives."""
    return tuple(value) if isinstance(value, list) else value
