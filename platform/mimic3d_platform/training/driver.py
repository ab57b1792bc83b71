"""The driver's part of a run: starts the workers, shows their progress, and ends them when asked to.

Loads Ray Train and PyTorch.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from ray.exceptions import RayError
from ray.train.v2.api.callback import UserCallback

from mimic3d_platform import tracking
from mimic3d_platform.cluster.resources import WorkerPlan
from mimic3d_platform.cluster.train_workers import WorkersFailedError, run_train_workers
from mimic3d_platform.errors import ClusterGoneError, UserError
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.training.interrupts import run_interruptible
from mimic3d_platform.training.progress import ProgressReport
from mimic3d_platform.training.result import TrainingResult
from mimic3d_platform.training.run_identity import TrainingRun
from mimic3d_platform.training.run_state import RunState
from mimic3d_platform.training.stop_signals import catch_sigterm
from mimic3d_platform.training.worker import WorkerArguments, train_worker

# Limits attempts that fail before they reach the training loop, which `FailureCount` does not see.
MAX_ATTEMPTS = 100
POLL_S = 1.0


def run_workers(
    run: TrainingRun,
    plan: WorkerPlan,
    callbacks: Sequence[UserCallback],
    on_progress: Callable[[ProgressReport], None] | None,
    on_note: Callable[[str], None] | None,
) -> TrainingResult:
    """Trains a run on Ray Train workers to its end. The caller holds the run's lock.

    Raises:
        UserError: the run failed; says why.
        KeyboardInterrupt: it was stopped by a signal; what it had done is stored.
    """
    total = run.config.total_nimg
    # A sweep compares trials at the same images, and a checkpoint is judged when it is stored.
    background_metrics = plan.spare and not callbacks and not run.config.output.keep_best
    with RunState.started(run.runs_uri, run.name) as state:

        def train() -> None:
            run_train_workers(
                train_worker,
                WorkerArguments(run, state, background_metrics),
                name=run.name,
                storage_uri=run.runs_uri,
                plan=plan,
                max_failures=MAX_ATTEMPTS,
                callbacks=callbacks,
                on_worker_start=catch_sigterm,
            )

        def stop() -> None:
            if on_note is not None:
                on_note("stopping once a checkpoint is stored; a second Ctrl-C stops at once")
            state.request_stop()

        if on_progress is not None:
            url = tracking.run_url(run.mlflow.run_id)
            on_progress(ProgressReport("starting the workers", 0, total, url=url))
        with _followed(state, _ending_stage1(run, on_progress), on_note):
            try:
                run_interruptible(train, stop)
            except WorkersFailedError as error:
                raise UserError(
                    f"the run {run.name} failed: {error}; run the same command again to resume from its last "
                    "checkpoint"
                ) from error
        if (failure := state.failure()) is not None:
            raise UserError(failure)
        if state.stopped_at() is not None:
            raise KeyboardInterrupt
        last = state.latest_report()
    stored = CheckpointStore(run.runs_uri, run.name).all()
    if last is None or not stored or stored[-1].nimg < total:
        raise UserError(
            f"the run {run.name} left no checkpoint of its end under {run.runs_uri}: run it again"
        )
    return TrainingResult(run.name, run.mlflow.run_id, stored[-1].uri, last.metrics, last.train_seconds)


def _ending_stage1(
    run: TrainingRun, on_progress: Callable[[ProgressReport], None] | None
) -> Callable[[ProgressReport], None]:
    """`on_progress`, which also closes the MLflow run of stage 1 when stage 2 begins."""
    stage1 = run.mlflow.stages.get("stage1")

    def show(report: ProgressReport) -> None:
        nonlocal stage1
        if stage1 is not None and report.nimg > run.config.stage1_nimg:
            stage1.finish()
            stage1 = None
        if on_progress is not None:
            on_progress(report)

    return show


@contextlib.contextmanager
def _followed(
    state: RunState,
    on_progress: Callable[[ProgressReport], None],
    on_note: Callable[[str], None] | None,
) -> Iterator[None]:
    """Passes new reports and notes of the workers on while the block runs, from a thread of its own."""
    ended = threading.Event()
    shown: set[str] = set()

    def poll() -> None:
        with contextlib.suppress(RayError):
            report, notes = state.latest_report(timeout=10), state.notes(timeout=10)
            for note in notes:
                if on_note is not None and note not in shown:
                    on_note(note)
                shown.add(note)
            if report is not None:
                on_progress(report)

    def follow() -> None:
        while not ended.wait(POLL_S):
            poll()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=15)
        if not isinstance(sys.exception(), ClusterGoneError):
            poll()
