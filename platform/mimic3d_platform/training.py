"""The main job: both stages of a recipe on Ray Train, from shards in object storage to a generator."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mimic3d.config import Config, fingerprint, to_dict
from mimic3d_platform import runs, storage, tracking, weights
from mimic3d_platform.data.parallel import join_ray
from mimic3d_platform.data.stream import open_dataset, require
from mimic3d_platform.errors import UserError
from mimic3d_platform.progress import ProgressBoard, Report
from mimic3d_platform.settings import get_settings
from mimic3d_platform.worker import train_worker

EXPERIMENT = "mimic3d"
RESULT = "result.json"
KEPT_CHECKPOINTS = 2
MAX_RETRIES = 3
POLL_S = 1.0
# glibc returns large blocks to the system after each use; a CPU worker spends a third of its time on the
# page faults of getting them back.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    name: str
    run_id: str
    checkpoint_uri: str
    metrics: dict[int, dict[str, float]]
    """By images consumed."""
    seconds: float
    """Spent in training steps."""


def train(
    config: Config,
    name: str,
    *,
    runs_uri: str = runs.DEFAULT_RUNS_URI,
    workers: int | None = None,
    on_progress: Callable[[Report], None] | None = None,
) -> TrainingResult:
    """Trains a recipe to its end, going on from the last checkpoint if the run exists.

    Args:
        config: with `data.uri` set.
        name: of the run: the same name and config go on, another config under it is refused.
        runs_uri: the folder that holds all runs, `s3://…` or local.
        workers: Ray Train workers, one GPU each where the cluster has any, else one CPU each; as many as
            there are when None.
        on_progress: told about once a second how far the run is.
    Raises:
        UserError: anything of data, services, names or resources that the user can mend.
    """
    runs.check_name(name)
    manifest = open_dataset(config.data.uri)
    require(manifest, resolution=config.model.image_resolution, where=config.data.uri)
    tracking.check_tracking()
    join_ray()
    resources = _resources(config, workers)
    # Chosen here, once: workers that chose for themselves could disagree when a server comes or goes.
    networks = {purpose: weights.best_available(purpose) for purpose in ("perceptual", "frechet")}
    if runs.claim(runs_uri, name, config) and (done := _finished(runs_uri, name)) is not None:
        return done
    run_ids = _start_runs(config, name, manifest.fingerprint, resources, networks)
    try:
        result = _fit(config, name, runs_uri, resources, run_ids, networks, on_progress)
    except KeyboardInterrupt:
        _finish(run_ids, "KILLED")
        raise
    except BaseException:
        _finish(run_ids, "FAILED")
        raise
    _finish(run_ids, "FINISHED")
    storage.write_bytes(storage.join(runs_uri, name, RESULT), json.dumps(asdict(result)).encode())
    return result


def _finished(runs_uri: str, name: str) -> TrainingResult | None:
    """The result of a run that has reached its end."""
    place = storage.join(runs_uri, name, RESULT)
    if not storage.exists(place):
        return None
    values = json.loads(storage.read_bytes(place))
    metrics = {int(nimg): found for nimg, found in values.pop("metrics").items()}
    return TrainingResult(metrics=metrics, **values)


def _fit(
    config: Config,
    name: str,
    runs_uri: str,
    resources: dict[str, Any],
    run_ids: dict[str, str],
    networks: dict[str, str],
    on_progress: Callable[[Report], None] | None,
) -> TrainingResult:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    files, path = storage.filesystem(runs_uri)
    board = ProgressBoard.remote()
    gpu = resources["use_gpu"]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": to_dict(config),
            "runs_uri": runs_uri,
            "run_ids": run_ids,
            "networks": networks,
            "threads": resources["threads"],
            # Holds secrets: as an object it is in no page or process list of Ray's.
            "environment": [ray.put(get_settings().export())],
            "board": board,
        },
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources["workers"],
            use_gpu=gpu,
            resources_per_worker={"GPU": 1} if gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=MAX_RETRIES, controller_failure_limit=MAX_RETRIES),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            worker_runtime_env={"env_vars": ({} if gpu else MALLOC) | _temporary_folder()},
        ),
    )
    if on_progress is not None:
        on_progress(
            Report("starting the workers", 0, config.total_nimg, url=tracking.run_url(run_ids["run"]))
        )
    with _stoppable(), _followed(board, on_progress):
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise _explained(error, name) from error
    if (failure := ray.get(board.failure.remote())) is not None:
        raise UserError(failure)
    if result.checkpoint is None:
        raise UserError(f"the run {name} left no checkpoint under {runs_uri}: give it another --name")
    last: Report = ray.get(board.get.remote())
    checkpoint = result.checkpoint.path
    uri = f"s3://{checkpoint}" if storage.is_s3(runs_uri) else checkpoint
    return TrainingResult(name, run_ids["run"], uri, last.metrics, last.train_seconds)


def _explained(error: Exception, name: str) -> UserError:
    """The error of a worker that a user can mend, else the last line of what went wrong."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = [cause for failure in failures.values() for cause in _chain(failure)]
    causes += list(_chain(error))
    for cause in causes:
        if isinstance(cause, UserError):
            return UserError(str(cause))
    first = next((str(cause) for cause in causes if str(cause)), type(error).__name__)
    lines = [line for line in first.strip().splitlines() if line.strip()]
    return UserError(
        f"the run {name} failed: {lines[-1].strip()}; run the same command again to go on from its last "
        "checkpoint"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _temporary_folder() -> dict[str, str]:
    """TMPDIR, where it is set: workers write their checkpoints there before they are stored."""
    return {"TMPDIR": os.environ["TMPDIR"]} if os.environ.get("TMPDIR") else {}


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM are a KeyboardInterrupt of the block, and what they were again after it.

    Ray prints a stack trace on SIGTERM. `fit` answers Ctrl-C by an orderly end of the workers and of this
    program, as if all were well, and leaves that handler behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _followed(board: Any, on_progress: Callable[[Report], None] | None) -> Iterator[None]:
    """Tells `on_progress` of the board's reports while the block runs, in a thread of its own."""
    import ray

    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(POLL_S):
            with contextlib.suppress(ray.exceptions.RayError):
                report = ray.get(board.get.remote(), timeout=10)
                if report is not None:
                    on_progress(report)

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    if on_progress is not None:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if on_progress is not None:
            thread.join(timeout=15)


def _resources(config: Config, workers: int | None) -> dict[str, Any]:
    """How many workers of what kind; refused before anything starts if the cluster is too small."""
    import ray

    have = ray.cluster_resources()
    gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 0))
    kind, most = ("GPU", gpus) if gpus else ("CPU", cpus)
    if workers is None:
        workers = next(n for n in range(max(most, 1), 0, -1) if config.schedule.batch % n == 0)
    if workers < 1 or workers > most:
        raise UserError(f"{workers} workers need as many {kind}s, the cluster has {most}: change --workers")
    if config.schedule.batch % workers:
        raise UserError(
            f"schedule.batch {config.schedule.batch} cannot be split among {workers} workers: change either"
        )
    return {"workers": workers, "use_gpu": bool(gpus), "threads": 1 if not gpus else max(1, cpus // workers)}


def _start_runs(
    config: Config, name: str, data_fingerprint: str, resources: dict[str, Any], networks: dict[str, str]
) -> dict[str, str]:
    """The run in MLflow and a child for each stage, found again if an earlier start made them."""
    tags = {
        "mimic3d.config": fingerprint(config),
        "mimic3d.data": data_fingerprint,
        "mimic3d.version": metadata.version("mimic3d"),
        "mimic3d.commit": _commit(),
        "mimic3d.seed": str(config.seed),
        "mimic3d.perceptual": networks["perceptual"],
        "mimic3d.frechet": networks["frechet"],
        "mimic3d.workers": str(resources["workers"]),
        "mimic3d.hardware": "GPU" if resources["use_gpu"] else f"CPU {platform.machine()}",
    }
    parent = tracking.start_or_resume_run(EXPERIMENT, name, to_dict(config), tags)
    ids = {"run": parent}
    for stage in (1, 2):
        ids[f"stage{stage}"] = tracking.start_or_resume_run(
            EXPERIMENT, f"{name}-stage{stage}", {"stage": stage}, tags, parent_run_id=parent
        )
    return ids


def _finish(run_ids: dict[str, str], status: str) -> None:
    for run_id in run_ids.values():
        with contextlib.suppress(UserError):
            tracking.finish_run(run_id, status)


def _commit() -> str:
    """The commit of the checkout that this runs from, with a mark if files were changed since."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "installed"
