"""A sweep as MLflow and the terminal see it: its run, its trials' runs under it, their stages under those."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimic3d_platform import tracking
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError
from mimic3d_platform.tracking import EXPERIMENT
from mimic3d_platform.tracking.logger import RunLogger
from mimic3d_platform.tracking.server import client, tracking_errors
from mimic3d_platform.tuning.plots import label, short
from mimic3d_platform.tuning.records import Trial
from mimic3d_platform.tuning.sweep import Sweep

REPORT = "report"
_ENDED = "mimic3d.trial_ended"
# As many as MLflow lists at once.
_MOST_RUNS = 50000


def params(sweep: Sweep) -> dict[str, Any]:
    """The sweep's own settings below `sweep`, then its base's as any run has them."""
    values = sweep.model_dump(mode="json")
    values["space"] = {path: json.dumps(kind) for path, kind in values["space"].items()}
    return {"sweep": {key: value for key, value in values.items() if key != "config"}, **values["config"]}


class Follower:
    """Tells the terminal and MLflow of trials that start and end."""

    def __init__(self, sweep: Sweep, run_id: str, console: Console | None) -> None:
        self._sweep, self._run_id, self._console = sweep, run_id, console
        self._started: set[int] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray Tune pickles all it is given, to go on from; sweeps go on from their records."""
        return Follower, (self._sweep, self._run_id, None)

    def __call__(self, trial: Trial) -> None:
        values = ", ".join(f"{short(path)} {label(value)}" for path, value in trial.point.items())
        if trial.over:
            found = [
                f"{objective.metric} {trial.metrics[objective.metric]:.4g}"
                for objective in self._sweep.objectives
                if objective.metric in trial.metrics
            ]
            result = trial.error or ", ".join(found) or "nothing measured"
            self._say(f"trial {trial.index} {trial.status} at {trial.kimg:g} kimg: {result}")
            with contextlib.suppress(UserError):
                close_trial(trial, self._run_id)
        elif trial.index not in self._started:
            self._started.add(trial.index)
            self._say(f"trial {trial.index} starts: {values}")

    def retried(self, trial: Trial, reason: str) -> None:
        """Tells of a trial that failed and goes on from its last checkpoint."""
        self._say(f"trial {trial.index} failed and is tried again: {reason}")

    def _say(self, line: str) -> None:
        if self._console is not None:
            self._console.say(line)


def close_trial(trial: Trial, parent_run_id: str) -> None:
    """Marks a trial's run in MLflow, and closes it and its stages: a trial that Ray ended could not."""
    tags = {"mimic3d.trial": str(trial.index), _ENDED: trial.status}
    run_id = tracking.start_or_resume_run(EXPERIMENT, trial.name, {}, tags, parent_run_id=parent_run_id)
    _close(run_id, "FAILED" if trial.status == "failed" else "FINISHED")


def close_trials(trials: Sequence[Trial], parent_run_id: str) -> None:
    """Closes trials that were not closed as they ended: the sweep was killed just then, or MLflow was away.

    Raises:
        UserError: MLflow does not answer.
    """
    known = {run.data.tags.get(tracking.RUN_NAME_TAG): run.data.tags for run in _below(parent_run_id)}
    for trial in trials:
        if trial.over and known.get(trial.name, {}).get(_ENDED) != trial.status:
            close_trial(trial, parent_run_id)


def close_interrupted(trials: Sequence[Trial], parent_run_id: str, status: str) -> None:
    """Closes in MLflow, as far as it answers, what the end of the sweep's process cut off."""
    names = {trial.name for trial in trials if not trial.over}
    with contextlib.suppress(UserError):
        for run in _below(parent_run_id):
            if run.data.tags.get(tracking.RUN_NAME_TAG) in names:
                _close(run.info.run_id, status)


def _close(run_id: str, status: str) -> None:
    """Closes a run and its stages."""
    for stage in _below(run_id):
        tracking.finish_run(stage.info.run_id, status)
    tracking.finish_run(run_id, status)


def log_report(run_id: str, folder: Path, best: list[Trial], count: int) -> None:
    """The report and the best trial's numbers, in the sweep's run.

    Raises:
        UserError: MLflow does not take them.
    """
    if best:
        logger = RunLogger(run_id)
        logger.log_metrics({f"best/{key}": value for key, value in best[0].metrics.items()}, count)
        logger.log_metrics({"best/trial": best[0].index}, count)
        logger.flush()
    with tracking_errors("store a sweep's report in"):
        client().log_artifacts(run_id, str(folder), REPORT)


def _below(run_id: str) -> list[Any]:
    """The runs that are children of a run."""
    mlflow_client = client()
    with tracking_errors("look up the runs of a sweep in"):
        experiment = mlflow_client.get_run(run_id).info.experiment_id
        clause = f"tags.`{tracking.PARENT_TAG}` = '{run_id}'"
        return list(mlflow_client.search_runs([experiment], clause, max_results=_MOST_RUNS))
