"""Runs a sweep from its file to its report; called again with the same name, it resumes."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d_platform import storage, tracking
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.cluster.named_actors import run_lock
from mimic3d_platform.console import Console
from mimic3d_platform.data.format.dataset import check_trainable, open_dataset
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.tracking import EXPERIMENT
from mimic3d_platform.tracking.tags import DATA_TAG, SWEEP_TAG
from mimic3d_platform.training.run_identity import SWEEP, check_name, claim_name
from mimic3d_platform.tuning.checks import concurrency, with_metric_names
from mimic3d_platform.tuning.mlflow_runs import (
    REPORT,
    TrialReporter,
    close_interrupted,
    close_trials,
    log_report,
    sweep_params,
)
from mimic3d_platform.tuning.report import SweepResult, write_report
from mimic3d_platform.tuning.schema import SHARED, Sweep
from mimic3d_platform.tuning.search import size
from mimic3d_platform.tuning.stage1 import find_stage1, pin_stage1, pinned_stage1, stage1_run, train_stage1
from mimic3d_platform.tuning.sweep_file import parse_sweep, rooted, sweep_differences, sweep_to_yaml
from mimic3d_platform.tuning.trials import SweepRun, Trial, TrialRecords

CLOCK = "clock.json"


def run_sweep(
    sweep: Sweep,
    name: str,
    console: Console,
    *,
    runs_uri: str | None = None,
    report: Path | None = None,
    extend: bool = False,
) -> SweepResult:
    """Runs a sweep to its end, or resumes it, and writes its report.

    Args:
        name: of the sweep; its trials' runs are NAME-000, NAME-001, …, beside all other runs.
        runs_uri: the folder that holds all runs, `s3://…` or local.
        report: the local folder of the report, `sweeps-out/NAME` when not given. The report is also in the
            sweep's folder among the runs, and in MLflow.
        extend: accepts a greater budget than the existing sweep has, and nothing else. As each point depends
            on the trials before it alone, the result is that of one sweep with this budget.
    Raises:
        UserError: a problem of data, services, names or resources that the user can solve, or no trial has a
            result.
    """
    runs_uri, sweep = storage.absolute(runs_uri or DEFAULT_RUNS_URI), rooted(sweep)
    check_name(stage1_run(check_name(name)))  # The longest of the names that are made from it.
    manifest = open_dataset(sweep.base.data.uri)
    check_trainable(manifest, resolution=sweep.base.model.image_resolution, where=sweep.base.data.uri)
    tracking.check_tracking()
    join_ray()
    at_once = _at_once(sweep)
    sweep_uri = storage.join(runs_uri, name)
    stage1_uri = pinned_stage1(sweep_uri) or find_stage1(sweep)
    named = with_metric_names(sweep, feature_weights.best_available("frechet"))
    folder = _writable(report or Path("sweeps-out", name))
    if extend:
        with run_lock(runs_uri, name):
            _extend(runs_uri, name, sweep, console)
    _claim_name(runs_uri, name, sweep)
    tags = {SWEEP_TAG: name, DATA_TAG: manifest.fingerprint}
    with run_lock(runs_uri, name):
        records = TrialRecords(sweep_uri)
        run_id = tracking.start_or_resume_run(EXPERIMENT, name, sweep_params(sweep), tags)
        with _closing(run_id):
            if url := tracking.run_url(run_id):
                console.say(f"MLflow: {url}")
            if sweep.stage1 == SHARED:
                stage1_uri = train_stage1(sweep, name, runs_uri, run_id, console)
            elif stage1_uri:
                stage1_uri = pin_stage1(stage1_uri, sweep_uri)
            _announce(named, records, at_once, console)
            run = SweepRun(named, name, runs_uri, stage1_uri, run_id, at_once)
            _run_trials(run, records, sweep_uri, console)
            trials = records.all()
            best = _report(run, trials, folder, storage.join(sweep_uri, REPORT))
            if not best:
                raise UserError(_no_winner(named, name, trials, folder))
    return SweepResult(name, named, run_id, trials, best, folder)


def _run_trials(run: SweepRun, records: TrialRecords, sweep_uri: str, console: Console) -> None:
    """Runs all trials that are left; closes those that are interrupted in MLflow."""
    from mimic3d_platform.tuning.ray_tune import run_trials

    clock, reporter = _Clock(sweep_uri), TrialReporter(run.sweep, run.parent_run_id, console)

    def on_change(trial: Trial) -> None:
        reporter.changed(trial)
        clock.save()

    try:
        with tempfile.TemporaryDirectory(prefix="mimic3d-sweep-") as scratch:
            run_trials(run, records, scratch, clock.hours, on_change, reporter.retried)
        close_trials(records.all(), run.parent_run_id)
    except BaseException as error:
        clock.save()
        close_interrupted(records.all(), run.parent_run_id, _status_of(error))
        raise


def _report(run: SweepRun, trials: list[Trial], folder: Path, stored: str) -> list[Trial]:
    """Writes the report into `folder`, storage and MLflow; returns the best trials.

    It is made in a folder of its own first: other files in the user's folder are no part of it.
    """
    with tempfile.TemporaryDirectory(prefix="mimic3d-report-") as scratch:
        best = write_report(run.sweep, run.name, trials, run.stage1_uri, Path(scratch))
        for place in (folder, stored):
            storage.copy_tree(scratch, place)
        log_report(run.parent_run_id, Path(scratch), best, len(trials))
    return best


def _writable(folder: Path) -> Path:
    """Makes the report's folder before anything is trained.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write the report to {folder} ({reason}): give another --report") from None


def _at_once(sweep: Sweep) -> int:
    """The number of trials that run at once, which is never more than there are."""
    import ray

    most = concurrency(sweep, ray.cluster_resources())
    return min(most, size(sweep) or most)


def _claim_name(runs_uri: str, name: str, sweep: Sweep) -> None:
    """Stores the sweep under its name, or compares it with the one that is stored there.

    Raises:
        UserError: the name belongs to a run, or to another sweep; the first differences are shown.
    """
    place = storage.join(runs_uri, name, SWEEP)
    if storage.exists(storage.join(runs_uri, name, CONFIG)):
        raise UserError(f"{name} is a training run already: give the sweep another --name")
    claim_name(
        place,
        sweep_to_yaml(sweep),
        lambda text: sweep_differences(parse_sweep(text, place), sweep),
        f"the sweep {name} exists with other settings",
    )


def _extend(runs_uri: str, name: str, sweep: Sweep, console: Console) -> None:
    """Replaces a stored sweep by one with a greater budget.

    Raises:
        UserError: there is no such sweep, or more than its budget differs, or the budget is not greater.
    """
    place = storage.join(runs_uri, name, SWEEP)
    if not storage.exists(place):
        raise UserError(f"there is no sweep {name} to extend in {runs_uri}: run it without --extend first")
    stored = parse_sweep(storage.read_bytes(place).decode(), place)
    changes = sweep_differences(stored, sweep)
    if not changes:
        return
    if others := [change for change in changes if not change.startswith("budget.")]:
        raise UserError(
            f"the sweep {name} can be extended in its budget only, not in {', '.join(others[:4])}: give this "
            "one another --name"
        )
    for limit in ("trials", "kimg", "hours"):
        old, new = getattr(stored.budget, limit), getattr(sweep.budget, limit)
        if new is not None and (old is None or new < old):
            raise UserError(f"the sweep {name} has budget.{limit} {old}, {new} does not extend it: raise it")
    storage.write_bytes(place, sweep_to_yaml(sweep).encode())
    console.say(f"the sweep {name} is extended: {', '.join(changes)}")


@contextlib.contextmanager
def _closing(run_id: str) -> Iterator[None]:
    """Closes the sweep's run in MLflow when the block ends."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(UserError):
            tracking.finish_run(run_id, _status_of(error))
        raise
    tracking.finish_run(run_id)


def _status_of(error: BaseException) -> str:
    """The status in MLflow of a run that an error ended."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


class _Clock:
    """The hours that the sweep has been running, in this process and in those before it."""

    def __init__(self, sweep_uri: str) -> None:
        self._place, self._started = storage.join(sweep_uri, CLOCK), time.monotonic()
        stored = storage.exists(self._place)
        self._before = float(json.loads(storage.read_bytes(self._place))["hours"]) if stored else 0.0

    def hours(self) -> float:
        return self._before + (time.monotonic() - self._started) / 3600

    def save(self) -> None:
        """Stores the hours; where storage is away, the next call stores them."""
        with contextlib.suppress(UserError):
            storage.write_bytes(self._place, json.dumps({"hours": self.hours()}).encode())


def _announce(sweep: Sweep, records: TrialRecords, at_once: int, console: Console) -> None:
    total, ended = size(sweep), sum(trial.ended for trial in records.all())
    count = f"{total} trials" if total else "trials until the budget is used"
    kept = f", {ended} of them over already" if ended else ""
    console.say(f"{count}, {at_once} at once with {sweep.trials.workers} workers each{kept}")


def _no_winner(sweep: Sweep, name: str, trials: list[Trial], folder: Path) -> str:
    if not trials:
        return f"the budget of the sweep {name} leaves room for no trial: raise it and give --extend"
    failed = [trial for trial in trials if trial.status == "failed"]
    if failed and len(failed) == len(trials):
        return f"all {len(trials)} trials of the sweep {name} failed, the first of: {failed[0].error}"
    measured = sorted({metric for trial in trials for metric in trial.metrics})
    wanted = ", ".join(objective.metric for objective in sweep.objectives)
    return f"no trial of the sweep {name} measured {wanted}; there are: {', '.join(measured)} (see {folder})"
