"""The trials as Ray Tune runs them: asked of `search`, kept in `records`, told to who started the sweep."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mimic3d.config import to_dict
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings
from mimic3d_platform.tuning.records import Records, Trial
from mimic3d_platform.tuning.resources import TRIAL_BUNDLE
from mimic3d_platform.tuning.search import DONE, WAIT, propose
from mimic3d_platform.tuning.sweep import Asha, Sweep
from mimic3d_platform.tuning.trials import FINISHED, HISTORY, KNOWN, run_trial, trial_config

# Ray Tune's own: it would catch Ctrl-C and end as if all were well, and keep logs that nobody reads.
_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


@dataclass(frozen=True)
class Job:
    """What the trials of a sweep share, beside the sweep.

    Attributes:
        sweep: with the metrics' names as the runs write them.
        name: of the sweep; its trials' runs are called after it.
        stage1_uri: the checkpoint that trials fork from, or "".
        parent_run_id: the sweep's run in MLflow.
        concurrency: trials at once.
    """

    sweep: Sweep
    name: str
    runs_uri: str
    stage1_uri: str
    parent_run_id: str
    concurrency: int


def run_trials(
    job: Job,
    records: Records,
    scratch: str,
    hours: Callable[[], float],
    on_change: Callable[[Trial], None],
    on_retry: Callable[[Trial, str], None],
) -> None:
    """Runs trials until the search has no more; those that are over already are kept.

    Args:
        scratch: a local folder for Ray Tune's own files. They are not needed to go on, and may hold what the
            environment holds, so they stay on this machine and are not kept.
        hours: that the trials have taken so far.
        on_change: told of each trial that starts, reports or ends.
        on_retry: told of a trial that failed and is tried again, and of what it failed of.
    Raises:
        UserError: Ray was lost.
    """
    import ray
    from ray import tune

    source = _source(job, records, hours)
    shared = {
        "runs_uri": job.runs_uri,
        "workers": job.sweep.trials.workers,
        "parent_run_id": job.parent_run_id,
        "environment": [ray.put(get_settings().export())],
    }
    with _quiet(), _keys_kept_back():
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, job=shared), tune.PlacementGroupFactory([TRIAL_BUNDLE])
            ),
            tune_config=tune.TuneConfig(
                search_alg=source,
                scheduler=_scheduler(job.sweep),
                num_samples=-1,
                max_concurrent_trials=job.concurrency,
                reuse_actors=False,
                trial_dirname_creator=lambda trial: f"{trial.config['index']:03d}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=job.name,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=job.sweep.trials.failures),
                callbacks=[_observer(records, on_change, on_retry)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except (ray.exceptions.RayError, tune.TuneError, ConnectionError) as error:
            first = str(error).strip().split("\n")[0]
            raise UserError(
                f"Ray ended the sweep {job.name} ({first}): run the same command again, it goes on from here"
            ) from error
    records.flush()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray Tune as a library: what it would print and catch is told by the observer."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _keys_kept_back() -> Iterator[None]:
    """Ray Tune would give the keys of storage to its trials in their runtime environment.

    Ray writes that into its logs and shows it on its pages. Trials have the keys from `run_trial`'s job.
    """
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE as given

    keys = {name for name in given if name.startswith("AWS_")}
    given.difference_update(keys)
    try:
        yield
    finally:
        given.update(keys)


def _scheduler(sweep: Sweep) -> Any:
    """Ray Tune's successive halving; a population is a matter of the search, see `search`."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if not isinstance(sweep.scheduler, Asha):
        return FIFOScheduler()

    class Halving(ASHAScheduler):
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            """What is known again is only kept, and a trial at its end is left to end by itself."""
            decision = super().on_trial_result(controller, trial, result)
            decided = result.get(KNOWN) or result["nimg"] >= trial.config["end"]
            return self.CONTINUE if decided else decision

    return Halving(
        time_attr="nimg",
        metric=sweep.objectives[0].metric,
        mode=sweep.objectives[0].mode,
        grace_period=round(sweep.scheduler.grace_kimg * 1000),
        max_t=sweep.base.total_nimg + 1,
        reduction_factor=sweep.scheduler.reduction,
    )


def _source(job: Job, records: Records, hours: Callable[[], float]) -> Any:
    """The search as Ray Tune's kind of it: first what was running, then what `propose` says."""
    from ray.tune.search import Searcher

    resumed = deque(trial for trial in records.all() if not trial.over)
    # Successive halving compares with all before; other sweeps know them from their records.
    halving = isinstance(job.sweep.scheduler, Asha)
    replayed = deque(trial for trial in records.all() if halving and trial.over and trial.reports)

    class Source(Searcher):
        def suggest(self, trial_id: str) -> Any:
            if replayed:
                trial = replayed.popleft()
                return {"index": trial.index, "replay": list(trial.reports), "config": None}
            if resumed:
                return assignment(resumed.popleft())
            trials = records.before_next()
            proposal = propose(job.sweep, trials, hours=hours())
            if proposal == WAIT:
                return None
            if proposal == DONE:
                return Searcher.FINISHED
            trial = Trial(
                index=len(trials),
                name=f"{job.name}-{len(trials):03d}",
                point=proposal.point,
                generation=proposal.generation,
                member=proposal.member,
                parent=proposal.parent,
            )
            records.put(trial)
            return assignment(trial)

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            """The observer has kept it."""

        def save(self, checkpoint_path: str) -> None:
            """The records are its state."""

        def restore(self, checkpoint_path: str) -> None:
            """The records are its state."""

    def assignment(trial: Trial) -> dict[str, Any]:
        config = trial_config(job.sweep, trial, job.stage1_uri, records.all())
        tags = {"mimic3d.sweep": job.name, "mimic3d.trial": str(trial.index)}
        tags |= {f"mimic3d.sweep.{path}": str(value) for path, value in trial.point.items()}
        return {
            "index": trial.index,
            "end": config.total_nimg,
            "name": trial.name,
            "config": to_dict(config),
            "tags": tags,
            "replay": list(trial.reports) if halving else [],
        }

    return Source()


def _observer(
    records: Records, on_change: Callable[[Trial], None], on_retry: Callable[[Trial, str], None]
) -> Any:
    """Keeps what Ray Tune says of its trials."""
    from ray import tune

    class Observer(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if trial.config["config"]:
                on_change(records[trial.config["index"]])

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if not result.get(KNOWN):
                update(trial, _with_report(records[trial.config["index"]], result))

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            known = records[trial.config["index"]]
            if not known.over:
                update(trial, replace(known, status="stopped"))

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if trial.config["config"]:
                on_retry(records[trial.config["index"]], _reason(trial))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if trial.config["config"]:
                known = records[trial.config["index"]]
                update(trial, replace(known, status="failed", error=_reason(trial)))

    def update(trial: Any, now: Trial) -> None:
        if now != records[now.index]:
            records.put(now)
            on_change(now)

    return Observer()


def _with_report(trial: Trial, result: dict[str, Any]) -> Trial:
    """A trial that has said something: measurements are numbers whose names have a branch after a slash.

    A run tells its newest measurement with every checkpoint; only the first time it is news. At its end it
    tells all it has measured, by images.
    """
    if not result.get(FINISHED):
        metrics = {key: float(value) for key, value in result.items() if "/" in key and _is_number(value)}
        trial = replace(trial, nimg=int(result["nimg"]))
        return trial.measured(trial.nimg, metrics) if metrics and metrics != trial.metrics else trial
    history = {int(nimg): metrics for nimg, metrics in result[HISTORY].items()}
    trial = replace(trial, reports=())
    for nimg in sorted(history):
        trial = trial.measured(nimg, history[nimg])
    return replace(
        trial,
        status="finished",
        nimg=int(result["nimg"]),
        seconds=float(result["seconds"]),
        checkpoint_uri=result["checkpoint_uri"],
        run_id=result["run_id"],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reason(trial: Any) -> str:
    """The last line of what a trial failed of."""
    error = trial.get_error()
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause or "it was lost").splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1]) if lines else type(cause).__name__
