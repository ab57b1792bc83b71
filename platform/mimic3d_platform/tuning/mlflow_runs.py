"""A sweep in MLflow: its run, the runs of its trials below it, and the stages of those below them."""

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
from mimic3d_platform.tracking.tags import TRIAL_TAG
from mimic3d_platform.tuning.plots import format_value, short_name
from mimic3d_platform.tuning.schema import Sweep
from mimic3d_platform.tuning.trials import Trial

REPORT = "report"
_ENDED_TAG = "mimic3d.trial_ended"


def sweep_params(sweep: Sweep) -> dict[str, Any]:
    """The parameters of the sweep's run: its own settings below `sweep`, then its base's config."""
    values = sweep.model_dump(mode="json")
    values["space"] = {path: json.dumps(kind) for path, kind in values["space"].items()}
    return {"sweep": {key: value for key, value in values.items() if key != "config"}, **values["config"]}


class TrialReporter:
    """Prints the trials that start and end, and closes the runs of those that end in MLflow."""

    def __init__(self, sweep: Sweep, run_id: str, console: Console | None) -> None:
        self._sweep, self._run_id, self._console = sweep, run_id, console
        self._started: set[int] = set()

    def __reduce__(self) -> tuple[type[TrialReporter], tuple[Sweep, str, None]]:
        """Leaves the console out: Ray Tune pickles all that it is given."""
        return TrialReporter, (self._sweep, self._run_id, None)

    def changed(self, trial: Trial) -> None:
        """Reports a trial that starts or ends; of one that trains, nothing."""
        if trial.ended:
            results = [
                f"{objective.metric} {trial.metrics[objective.metric]:.4g}"
                for objective in self._sweep.objectives
                if objective.metric in trial.metrics
            ]
            result = trial.error or ", ".join(results) or "nothing measured"
            self._say(f"trial {trial.index} {trial.status} at {trial.kimg:g} kimg: {result}")
            with contextlib.suppress(UserError):
                close_trial(trial, self._run_id)
        elif trial.index not in self._started:
            self._started.add(trial.index)
            values = ", ".join(
                f"{short_name(path)} {format_value(value)}" for path, value in trial.point.items()
            )
            self._say(f"trial {trial.index} starts: {values}")

    def retried(self, trial: Trial, reason: str) -> None:
        """Reports a trial that failed and resumes from its last checkpoint."""
        self._say(f"trial {trial.index} failed and is tried again: {reason}")

    def _say(self, line: str) -> None:
        if self._console is not None:
            self._console.say(line)


def close_trial(trial: Trial, parent_run_id: str) -> None:
    """Tags and closes the run of a trial and those of its stages: a trial that Ray stopped could not."""
    tags = {TRIAL_TAG: str(trial.index), _ENDED_TAG: trial.status}
    run_id = tracking.start_or_resume_run(EXPERIMENT, trial.name, {}, tags, parent_run_id=parent_run_id)
    _close(run_id, "FAILED" if trial.status == "failed" else "FINISHED")


def close_trials(trials: Sequence[Trial], parent_run_id: str) -> None:
    """Closes the trials that were not closed when they ended: the sweep was killed, or MLflow was away.

    Raises:
        UserError: MLflow does not answer.
    """
    # The tag comes before the end: MLflow may have been away in between.
    closed = {
        (run.data.tags.get(tracking.RUN_NAME_TAG), run.data.tags.get(_ENDED_TAG))
        for run in tracking.children_of(parent_run_id)
        if run.info.status != "RUNNING"
    }
    for trial in trials:
        if trial.ended and (trial.name, trial.status) not in closed:
            close_trial(trial, parent_run_id)


def close_interrupted(trials: Sequence[Trial], parent_run_id: str, status: str) -> None:
    """Closes the runs of the trials that the end of the sweep's process interrupted, if MLflow answers."""
    names = {trial.name for trial in trials if not trial.ended}
    with contextlib.suppress(UserError):
        for run in tracking.children_of(parent_run_id):
            if run.data.tags.get(tracking.RUN_NAME_TAG) in names:
                _close(run.info.run_id, status)


def log_report(run_id: str, folder: Path, best: Sequence[Trial], count: int) -> None:
    """Logs the report's files and the best trial's metrics to the sweep's run.

    Args:
        count: of all trials; the step of the metrics.
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


def _close(run_id: str, status: str) -> None:
    """Closes a run and its stages."""
    for stage in tracking.children_of(run_id):
        tracking.finish_run(stage.info.run_id, status)
    tracking.finish_run(run_id, status)
