"""A sweep from its file to its report, in one call; the same call again goes on where it was."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mimic3d.config import Config
from mimic3d_platform import runs, storage, tracking, weights
from mimic3d_platform.console import Console
from mimic3d_platform.data.parallel import join_ray
from mimic3d_platform.data.stream import open_dataset, require
from mimic3d_platform.errors import UserError
from mimic3d_platform.run_records import EXPERIMENT
from mimic3d_platform.training import RESULT, train
from mimic3d_platform.tuning.execution import Job, run_trials
from mimic3d_platform.tuning.journal import REPORT, Follower, log_report, params
from mimic3d_platform.tuning.records import Records, Trial
from mimic3d_platform.tuning.report import SweepResult, write_report
from mimic3d_platform.tuning.resources import concurrency
from mimic3d_platform.tuning.search import size
from mimic3d_platform.tuning.sweep import (
    SHARED,
    Objective,
    Sweep,
    differences,
    parse_sweep,
    sweep_to_yaml,
)
from mimic3d_platform.tuning.trials import stage1_config

SWEEP, CLOCK = "sweep.yaml", "clock.json"
FRECHET = "frechet/"
_SHOWN_DIFFERENCES = 4


def run_sweep(
    sweep: Sweep, name: str, console: Console, *, runs_uri: str | None = None, report: Path | None = None
) -> SweepResult:
    """Runs a sweep to its end, going on if it was begun before, and writes its report.

    Args:
        name: of the sweep; its trials' runs are NAME-000, NAME-001, …, beside all other runs.
        runs_uri: the folder that holds all runs, `s3://…` or local.
        report: the local folder of the report, `sweeps-out/NAME` when not given. The report is also in the
            sweep's folder among the runs, and in MLflow.
    Raises:
        UserError: anything of data, services, names or resources that the user can mend; every trial failed.
    """
    runs_uri = runs_uri or runs.DEFAULT_RUNS_URI
    runs.check_name(name)
    manifest = open_dataset(sweep.base.data.uri)
    require(manifest, resolution=sweep.base.model.image_resolution, where=sweep.base.data.uri)
    tracking.check_tracking()
    join_ray()
    at_once = _at_once(sweep)
    _claim(runs_uri, name, sweep)
    sweep_uri = storage.join(runs_uri, name)
    records = Records(sweep_uri)
    named = _with_metric_names(sweep)
    tags = {"mimic3d.sweep": name, "mimic3d.data": manifest.fingerprint}
    run_id = tracking.start_or_resume_run(EXPERIMENT, name, params(sweep), tags)
    with _closing(run_id):
        stage1_uri = _stage1(sweep, name, runs_uri, run_id, console)
        _announce(named, records, at_once, console)
        clock, follow = _Clock(sweep_uri), Follower(named, run_id, console)

        def changed(trial: Trial) -> None:
            follow(trial)
            clock.save()

        job = Job(named, name, runs_uri, stage1_uri, run_id, at_once, clock.hours, changed)
        with tempfile.TemporaryDirectory(prefix="mimic3d-sweep-") as scratch:
            run_trials(job, records, scratch)
        trials = records.all()
        folder = report or Path("sweeps-out", name)
        best = write_report(named, name, trials, stage1_uri, folder)
        storage.copy_tree(folder, storage.join(sweep_uri, REPORT))
        log_report(run_id, folder, best, len(trials))
        if not best:
            raise UserError(_no_winner(named, name, trials, folder))
    return SweepResult(name, named, run_id, trials, best, folder)


def _at_once(sweep: Sweep) -> int:
    import ray

    most = concurrency(sweep, ray.cluster_resources())
    return min(most, size(sweep) or most)


def _claim(runs_uri: str, name: str, sweep: Sweep) -> None:
    """Takes the name for this sweep.

    Raises:
        UserError: the name belongs to a run, or to another sweep; the first differences are shown.
    """
    place = storage.join(runs_uri, name, SWEEP)
    if storage.exists(storage.join(runs_uri, name, runs.CONFIG)):
        raise UserError(f"{name} is a training run already: give the sweep another --name")
    if not storage.exists(place):
        storage.ensure_bucket(runs_uri)
        storage.write_bytes(place, sweep_to_yaml(sweep).encode())
        return
    changed = differences(parse_sweep(storage.read_bytes(place).decode(), place), sweep)
    if changed:
        more = f" and {len(changed) - _SHOWN_DIFFERENCES} more" if len(changed) > _SHOWN_DIFFERENCES else ""
        raise UserError(
            f"the sweep {name} exists with other settings "
            f"({', '.join(changed[:_SHOWN_DIFFERENCES])}{more}): give this one another --name"
        )


def _with_metric_names(sweep: Sweep) -> Sweep:
    """`frechet/3d` becomes what the runs will call it, which depends on the extractor that can be had."""
    from mimic3d.evaluation.frechet import frechet_name

    named = []
    for objective in sweep.objectives:
        metric = objective.metric
        if metric.startswith(FRECHET):
            metric = frechet_name(weights.best_available("frechet"), metric.removeprefix(FRECHET))
        named.append(Objective(metric=metric, mode=objective.mode))
    return sweep.model_copy(update={"objectives": named})


def _stage1(sweep: Sweep, name: str, runs_uri: str, run_id: str, console: Console) -> str:
    """The checkpoint that trials fork from: trained now if the sweep says so; "" if each trains its own."""
    if not sweep.forks:
        return ""
    if sweep.stage1 != SHARED:
        return _checkpoint_of(sweep.stage1)
    config: Config = stage1_config(sweep)
    console.say(f"stage 1, once for all trials: run {name}-stage1")
    with console.training() as follow:
        result = train(config, f"{name}-stage1", runs_uri=runs_uri, parent_run_id=run_id, on_progress=follow)
    return result.checkpoint_uri


def _checkpoint_of(uri: str) -> str:
    """A checkpoint's folder, or that of the run's last."""
    place = storage.join(uri, RESULT)
    if storage.exists(place):
        return str(json.loads(storage.read_bytes(place))["checkpoint_uri"])
    if not storage.exists(uri):
        raise UserError(
            f"stage1: there is nothing at {uri}; name a checkpoint, a run's folder, shared or own"
        )
    return uri


@contextlib.contextmanager
def _closing(run_id: str) -> Iterator[None]:
    """Closes the sweep's run in MLflow as the block ends."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(UserError):
            tracking.finish_run(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracking.finish_run(run_id)


class _Clock:
    """The hours that the sweep has taken, in this process and in those before it."""

    def __init__(self, sweep_uri: str) -> None:
        self._place, self._started = storage.join(sweep_uri, CLOCK), time.monotonic()
        known = storage.exists(self._place)
        self._before = json.loads(storage.read_bytes(self._place))["hours"] if known else 0.0

    def hours(self) -> float:
        return self._before + (time.monotonic() - self._started) / 3600

    def save(self) -> None:
        """Keeps it as it is now; storage that is away costs nothing but the time since."""
        with contextlib.suppress(UserError):
            storage.write_bytes(self._place, json.dumps({"hours": self.hours()}).encode())


def _announce(sweep: Sweep, records: Records, at_once: int, console: Console) -> None:
    total, over = size(sweep), sum(trial.over for trial in records.all())
    count = f"{total} trials" if total else "trials until the budget is used"
    kept = f", {over} of them over already" if over else ""
    console.say(f"{count}, {at_once} at once with {sweep.trials.workers} workers each{kept}")


def _no_winner(sweep: Sweep, name: str, trials: list[Trial], folder: Path) -> str:
    failed = [trial for trial in trials if trial.status == "failed"]
    if failed and len(failed) == len(trials):
        return f"all {len(trials)} trials of the sweep {name} failed, the first of: {failed[0].error}"
    known = sorted({metric for trial in trials for metric in trial.metrics})
    wanted = ", ".join(objective.metric for objective in sweep.objectives)
    return f"no trial of the sweep {name} measured {wanted}; there are: {', '.join(known)} (see {folder})"
