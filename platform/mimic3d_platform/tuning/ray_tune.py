"""Runs the trials of a sweep on Ray Tune: which one is next, when one is stopped early, what it reports.

Loads Ray: import it after `join_ray`, since Ray reads the services' variables when it is imported.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mimic3d_platform.cluster.ray_internals import ENV_VARS_TO_PROPAGATE
from mimic3d_platform.errors import UserError, first_line
from mimic3d_platform.settings import environment_variables, get_settings
from mimic3d_platform.tracking.tags import SWEEP_TAG, TRIAL_TAG
from mimic3d_platform.tuning.run_trial import (
    FINISHED,
    HISTORY,
    REPLAYED,
    Assignment,
    TrialSettings,
    run_trial,
)
from mimic3d_platform.tuning.schema import Asha, Sweep
from mimic3d_platform.tuning.search import DONE, NoProposal, propose
from mimic3d_platform.tuning.trials import SweepRun, Trial, TrialRecords, trial_config

# A string, where Ray declares dictionaries only.
_FINISHED: Any = Searcher.FINISHED
# By itself Ray Tune would catch Ctrl-C and end as if all were well, and write logs that nobody reads.
_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
# A trial's own function waits for its workers. A fraction of a CPU for each would cost every node that is
# full of workers a whole one, so it holds a little memory instead; without any resource, Ray Tune would give
# it a CPU.
_TRIAL_BUNDLE = {"memory": 2.0**20}


def run_trials(
    run: SweepRun,
    records: TrialRecords,
    scratch: str,
    hours: Callable[[], float],
    on_change: Callable[[Trial], None],
    on_retry: Callable[[Trial, str], None],
) -> None:
    """Runs trials until the search proposes no more; those that have ended already are kept.

    Args:
        scratch: a local folder for Ray Tune's own files. They may hold what the environment holds, so they
            stay on this machine and are not kept; a sweep resumes without them.
        hours: returns the hours that the sweep has been running.
        on_change: called with each trial that starts, reports or ends.
        on_retry: called with each trial that failed and is tried again, and its error.
    Raises:
        UserError: the connection to Ray was lost.
    """
    settings = TrialSettings(
        run.runs_uri, run.sweep.trials.workers, run.parent_run_id, ray.put(get_settings().export())
    )
    with _quiet(), _without_storage_keys():
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, settings=settings),
                tune.PlacementGroupFactory([_TRIAL_BUNDLE]),
            ),
            tune_config=tune.TuneConfig(
                search_alg=TrialSearch(run, records, hours),
                scheduler=_scheduler(run.sweep),
                num_samples=-1,
                max_concurrent_trials=run.concurrency,
                reuse_actors=False,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name=run.name,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=run.sweep.trials.failures),
                callbacks=[TrialObserver(records, on_change, on_retry)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except (ray.exceptions.RayError, tune.TuneError, ConnectionError) as error:
            raise UserError(
                f"Ray ended the sweep {run.name} ({first_line(error)}): run the same command again, it "
                "resumes from here"
            ) from error
    records.flush()


class TrialSearch(Searcher):
    """Ray Tune's search: first the trials that were running when the sweep ended, then what `propose` says.

    The records are its whole state, so Tune has nothing to save or restore.
    """

    def __init__(self, run: SweepRun, records: TrialRecords, hours: Callable[[], float]) -> None:
        super().__init__()
        self._run, self._records, self._hours = run, records, hours
        self._resumed = deque(trial for trial in records.all() if not trial.ended)
        # Successive halving compares with all earlier trials; other searches know them from the records.
        self._halving = isinstance(run.sweep.scheduler, Asha)
        ended = [trial for trial in records.all() if trial.ended and trial.reports]
        self._replayed = deque(ended if self._halving else ())

    def suggest(self, trial_id: str) -> dict[str, Assignment] | None:
        """The next assignment; None if there is none now, `_FINISHED` if there are no more."""
        if self._replayed:
            trial = self._replayed.popleft()
            return {"assignment": Assignment(trial.index, trial.name, replay=trial.reports)}
        if self._resumed:
            return {"assignment": self._assignment(self._resumed.popleft())}
        trials = self._records.before_next()
        proposal = propose(self._run.sweep, trials, hours=self._hours())
        if isinstance(proposal, NoProposal):
            return _FINISHED if proposal is DONE else None
        trial = Trial(
            index=len(trials),
            name=f"{self._run.name}-{len(trials):03d}",
            point=proposal.point,
            generation=proposal.generation,
            member=proposal.member,
            parent=proposal.parent,
        )
        self._records.put(trial)
        return {"assignment": self._assignment(trial)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the observer records it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def _assignment(self, trial: Trial) -> Assignment:
        run = self._run
        tags = {SWEEP_TAG: run.name, TRIAL_TAG: str(trial.index)}
        return Assignment(
            index=trial.index,
            name=trial.name,
            config=trial_config(run.sweep, trial, run.stage1_uri, self._records.all()),
            tags=tags | {f"{SWEEP_TAG}.{path}": str(value) for path, value in trial.point.items()},
            replay=trial.reports if self._halving else (),
        )


class TrialObserver(tune.Callback):
    """Records what Ray Tune reports of its trials."""

    def __init__(
        self,
        records: TrialRecords,
        on_change: Callable[[Trial], None],
        on_retry: Callable[[Trial, str], None],
    ) -> None:
        self._records, self._on_change, self._on_retry = records, on_change, on_retry

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        if _assignment_of(trial).config is not None:
            self._on_change(self._record(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if not result.get(REPLAYED):
            self._update(_with_report(self._record(trial), result))

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        record = self._record(trial)
        if not record.ended:
            self._update(replace(record, status="stopped"))

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        if _assignment_of(trial).config is not None:
            self._on_retry(self._record(trial), _reason(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        if _assignment_of(trial).config is not None:
            self._update(replace(self._record(trial), status="failed", error=_reason(trial)))

    def _record(self, trial: TuneTrial) -> Trial:
        return self._records[_assignment_of(trial).index]

    def _update(self, trial: Trial) -> None:
        if trial != self._records[trial.index]:
            self._records.put(trial)
            self._on_change(trial)


class Halving(ASHAScheduler):
    """Successive halving that lets a trial at its end finish, and only remembers replayed reports."""

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        config = _assignment_of(trial).config
        at_end = config is not None and result["nimg"] >= config.total_nimg
        return self.CONTINUE if result.get(REPLAYED) or at_end else decision


def _scheduler(sweep: Sweep) -> TrialScheduler:
    """Successive halving, or none. A population is a matter of the search, see `search`."""
    if not isinstance(sweep.scheduler, Asha):
        return FIFOScheduler()
    return Halving(
        time_attr="nimg",
        metric=sweep.objectives[0].metric,
        mode=sweep.objectives[0].mode,
        grace_period=round(sweep.scheduler.grace_kimg * 1000),
        max_t=sys.maxsize,  # Trials end by themselves, some later than the base.
        reduction_factor=sweep.scheduler.reduction,
    )


def _assignment_of(trial: TuneTrial) -> Assignment:
    assignment = trial.config["assignment"]
    assert isinstance(assignment, Assignment)
    return assignment


def _folder_name(trial: TuneTrial) -> str:
    return f"{_assignment_of(trial).index:03d}-{trial.trial_id}"


def _with_report(trial: Trial, result: dict[str, Any]) -> Trial:
    """The trial with a report of Tune's, whose measurements are the numbers named METRIC/BRANCH.

    Each checkpoint of a run reports the newest measurement, which is recorded once. The last report holds all
    measurements of the run.
    """
    if not result.get(FINISHED):
        metrics = {key: float(value) for key, value in result.items() if "/" in key and _is_number(value)}
        trial = replace(trial, nimg=int(result["nimg"]))
        is_new = metrics and metrics != trial.metrics
        return trial.with_measurement(trial.nimg, metrics) if is_new else trial
    history = {int(nimg): metrics for nimg, metrics in result[HISTORY].items()}
    trial = replace(trial, reports=())
    for nimg in sorted(history):
        trial = trial.with_measurement(nimg, history[nimg])
    return replace(
        trial,
        status="finished",
        nimg=int(result["nimg"]),
        seconds=float(result["seconds"]),
        checkpoint_uri=result["checkpoint_uri"],
        run_id=result["run_id"],
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reason(trial: TuneTrial) -> str:
    """The last line of the error of a trial."""
    error = trial.get_error()
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause or "it was lost").splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1]) if lines else type(cause).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Ray Tune from printing and from catching signals: the observer reports, this process stops."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with environment_variables(_ENVIRONMENT):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _without_storage_keys() -> Iterator[None]:
    """Keeps Ray Tune from copying the keys of storage into its trials' runtime environment.

    Ray writes that into its logs and shows it on its pages. Trials get the keys from their `TrialSettings`.
    """
    keys = {name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    ENV_VARS_TO_PROPAGATE.difference_update(keys)
    try:
        yield
    finally:
        ENV_VARS_TO_PROPAGATE.update(keys)
