"""A sweep from its file to its report, in one call; the same call again goes on where it was."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mimic3d_platform import storage, tracking
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.console import Console
from mimic3d_platform.data.format.dataset import check_trainable, open_dataset
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.tracking import EXPERIMENT
from mimic3d_platform.training import runs
from mimic3d_platform.training.progress import ProgressBoard
from mimic3d_platform.tuning import stage1
from mimic3d_platform.tuning.execution import Job, run_trials
from mimic3d_platform.tuning.journal import (
    REPORT,
    Follower,
    close_interrupted,
    close_trials,
    log_report,
    params,
)
from mimic3d_platform.tuning.objectives import with_metric_names
from mimic3d_platform.tuning.records import Records, Trial
from mimic3d_platform.tuning.report import SweepResult, write_report
from mimic3d_platform.tuning.resources import concurrency
from mimic3d_platform.tuning.search import size
from mimic3d_platform.tuning.sweep import SHARED, Sweep, differences, parse_sweep, sweep_to_yaml

SWEEP, CLOCK = "sweep.yaml", "clock.json"
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
    runs_uri = runs_uri or DEFAULT_RUNS_URI
    runs.check_name(stage1.run_of(runs.check_name(name)))  # The longest of the names that follow.
    manifest = open_dataset(sweep.base.data.uri)
    check_trainable(manifest, resolution=sweep.base.model.image_resolution, where=sweep.base.data.uri)
    tracking.check_tracking()
    join_ray()
    at_once, start_uri = _at_once(sweep), stage1.find(sweep)
    named = with_metric_names(sweep, feature_weights.best_available("frechet"))
    folder = _writable(report or Path("sweeps-out", name))
    _claim(runs_uri, name, sweep)
    sweep_uri = storage.join(runs_uri, name)
    tags = {"mimic3d.sweep": name, "mimic3d.data": manifest.fingerprint}
    with _alone(runs_uri, name):
        records = Records(sweep_uri)
        run_id = tracking.start_or_resume_run(EXPERIMENT, name, params(sweep), tags)
        with _closing(run_id):
            if url := tracking.run_url(run_id):
                console.say(f"MLflow: {url}")
            if sweep.stage1 == SHARED:
                start_uri = stage1.trained(sweep, name, runs_uri, run_id, console)
            elif start_uri:
                start_uri = stage1.pinned(start_uri, sweep_uri)
            _announce(named, records, at_once, console)
            _run(Job(named, name, runs_uri, start_uri, run_id, at_once), records, sweep_uri, console)
            trials = records.all()
            best = _report(named, name, trials, start_uri, run_id, folder, storage.join(sweep_uri, REPORT))
            if not best:
                raise UserError(_no_winner(named, name, trials, folder))
    return SweepResult(name, named, run_id, trials, best, folder)


def _run(job: Job, records: Records, sweep_uri: str, console: Console) -> None:
    """All trials that are left; those that are cut off are closed in MLflow."""
    clock, follow = _Clock(sweep_uri), Follower(job.sweep, job.parent_run_id, console)

    def changed(trial: Trial) -> None:
        follow(trial)
        clock.save()

    try:
        with tempfile.TemporaryDirectory(prefix="mimic3d-sweep-") as scratch:
            run_trials(job, records, scratch, clock.hours, changed, follow.retried)
        close_trials(records.all(), job.parent_run_id)
    except BaseException as error:
        clock.save()
        close_interrupted(records.all(), job.parent_run_id, _status_of(error))
        raise


def _report(
    sweep: Sweep, name: str, trials: list[Trial], start_uri: str, run_id: str, folder: Path, stored: str
) -> list[Trial]:
    """Writes the report into `folder`, storage and MLflow; the best trials.

    It is made in a folder of its own first: what else lies in the user's is none of it.
    """
    with tempfile.TemporaryDirectory(prefix="mimic3d-report-") as scratch:
        best = write_report(sweep, name, trials, start_uri, Path(scratch))
        for place in (folder, stored):
            storage.copy_tree(scratch, place)
        log_report(run_id, Path(scratch), best, len(trials))
    return best


def _writable(folder: Path) -> Path:
    """The report's folder, made now: that it cannot be written is not to be found out at the end.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write the report to {folder} ({reason}): give another --report") from None


@contextlib.contextmanager
def _alone(runs_uri: str, name: str) -> Iterator[None]:
    """Keeps another process from running the sweep while the block does."""
    import ray

    board = ProgressBoard.claim(runs_uri, name)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            ray.kill(board)


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


@contextlib.contextmanager
def _closing(run_id: str) -> Iterator[None]:
    """Closes the sweep's run in MLflow as the block ends."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(UserError):
            tracking.finish_run(run_id, _status_of(error))
        raise
    tracking.finish_run(run_id)


def _status_of(error: BaseException) -> str:
    """Of a run in MLflow that ends by an error."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


class _Clock:
    """The hours that the sweep's trials have taken, in this process and in those before it."""

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
    if not trials:
        return f"the budget of the sweep {name} leaves room for no trial: raise it, under another --name"
    failed = [trial for trial in trials if trial.status == "failed"]
    if failed and len(failed) == len(trials):
        return f"all {len(trials)} trials of the sweep {name} failed, the first of: {failed[0].error}"
    known = sorted({metric for trial in trials for metric in trial.metrics})
    wanted = ", ".join(objective.metric for objective in sweep.objectives)
    return f"no trial of the sweep {name} measured {wanted}; there are: {', '.join(known)} (see {folder})"
