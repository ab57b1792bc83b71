"""The main job: both stages of a recipe on Ray Train, from shards in object storage to a generator."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mimic3d.config import Config, fingerprint, override, to_dict
from mimic3d_platform import storage, tracking
from mimic3d_platform.cluster import resources
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.data.format.dataset import open_dataset, require
from mimic3d_platform.errors import ClusterGoneError, UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.models import model_uris
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.settings import get_settings
from mimic3d_platform.training import mlflow_runs, runs
from mimic3d_platform.training.driver import followed, run_interruptible
from mimic3d_platform.training.progress import ProgressBoard, Report
from mimic3d_platform.training.stop_signals import sigterm_callback
from mimic3d_platform.training.worker import train_worker

RESULT = "result.json"
# Bounds for what the board cannot count, see `progress`: attempts whose workers never came to their run, and
# starts of the controller.
MAX_ATTEMPTS = 100
MAX_CONTROLLER_FAILURES = 5
# Workers that load PyTorch on a busy machine, or wait for a node to come, need more than Ray's 60 s.
START_TIMEOUT_S = 300
# Elastic runs do not wait so long for a node that has just gone, which Ray counts until it has missed it: the
# next attempt goes without it.
ELASTIC_START_TIMEOUT_S = 90
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


@dataclass(frozen=True)
class _Launch:
    """What the parts of a run's start need to know of each other."""

    config: Config
    name: str
    runs_uri: str
    scale: resources.Scale
    origin: runs.Origin
    run_ids: Mapping[str, str]
    board: Any


def train(
    config: Config,
    name: str,
    *,
    runs_uri: str = runs.DEFAULT_RUNS_URI,
    workers: int | tuple[int, int] | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[Any] = (),
    on_progress: Callable[[Report], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Trains a recipe to its end, going on from the last checkpoint if the run exists.

    It may be called in a Ray task, in a trial of Ray Tune (with its `TuneReportCallback` among `callbacks`)
    and in any thread; only in a program's main thread does it answer Ctrl-C and SIGTERM, by a checkpoint.

    Args:
        config: with `data.uri` set.
        name: of the run: the same name and config go on, another config under it is refused.
        runs_uri: the folder that holds all runs, `s3://…` or local.
        workers: Ray Train workers, one GPU each where the cluster has any, else one CPU each; as many as
            there are when None; for (least, most) as many as there is room for, whenever workers start.
        parent_run_id: the run in MLflow below which this one is shown, such as a sweep's.
        tags: for the run in MLflow.
        callbacks: of Ray Train; they are told {"nimg", "kimg", newest metrics} with every checkpoint.
        on_progress: told about once a second how far the run is.
        on_note: told, line by line, what the user should know: damaged checkpoints, storage that is away.
    Raises:
        UserError: anything of data, services, names or resources that the user can mend.
        KeyboardInterrupt: it was told to stop; what it had done is stored.
    """
    runs.check_name(name)
    runs_uri = storage.rooted(runs_uri)
    places = {"data.uri": config.data.uri, "start": config.start}
    config = override(config, {key: storage.rooted(place) for key, place in places.items()})
    manifest = open_dataset(config.data.uri)
    require(manifest, resolution=config.model.image_resolution, where=config.data.uri)
    tracking.check_tracking()
    join_ray()
    scale = resources.plan(config, workers)
    origin = _origin(config, name, runs_uri, manifest.fingerprint)
    resumed = runs.claim(runs_uri, name, config, origin)
    if resumed and (done := _finished(runs_uri, name)) is not None:
        return done
    board = ProgressBoard.claim(runs_uri, name)
    run_ids: dict[str, str] = {}
    try:
        run_ids = mlflow_runs.start(config, name, origin, parent_run_id, tags)
        launch = _Launch(config, name, runs_uri, scale, origin, run_ids, board)
        result = _fit(launch, callbacks, on_progress, on_note)
    except KeyboardInterrupt:
        mlflow_runs.finish(run_ids, "KILLED")
        raise
    except BaseException:
        mlflow_runs.finish(run_ids, "FAILED")
        raise
    finally:
        _release(board)
    mlflow_runs.finish(run_ids, "FINISHED")
    storage.write_bytes(storage.join(runs_uri, name, RESULT), json.dumps(asdict(result)).encode())
    return result


def _release(board: Any) -> None:
    """Ends the board, so that the run can be claimed again; workers that are left stop when it is gone."""
    import ray

    if not isinstance(sys.exception(), ClusterGoneError):
        with contextlib.suppress(Exception):
            ray.kill(board)


def _origin(config: Config, name: str, runs_uri: str, data: str) -> runs.Origin:
    """What the run is made of beside its config; its networks are those it began with."""
    started_from = model_uris.fingerprint(config.start) if config.start else ""
    known = runs.known_origin(runs_uri, name)
    if known is not None and known.perceptual:
        return runs.Origin(data, started_from, known.perceptual, known.frechet)
    # Chosen here, once: workers that chose for themselves could disagree when a server comes or goes.
    perceptual, frechet = (feature_weights.best_available(purpose) for purpose in ("perceptual", "frechet"))
    return runs.Origin(data, started_from, perceptual, frechet)


def _finished(runs_uri: str, name: str) -> TrainingResult | None:
    """The result of a run that has reached its end."""
    place = storage.join(runs_uri, name, RESULT)
    if not storage.exists(place):
        return None
    values = json.loads(storage.read_bytes(place))
    metrics = {int(nimg): found for nimg, found in values.pop("metrics").items()}
    return TrainingResult(metrics=metrics, **values)


def _fit(
    launch: _Launch,
    callbacks: Sequence[Any],
    on_progress: Callable[[Report], None] | None,
    on_note: Callable[[str], None] | None,
) -> TrainingResult:
    import ray
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = _trainer(launch, callbacks)
    board, name, runs_uri = launch.board, launch.name, launch.runs_uri
    if on_progress is not None:
        url = tracking.run_url(launch.run_ids["run"])
        on_progress(Report("starting the workers", 0, launch.config.total_nimg, url=url))
    with followed(board, on_progress, on_note):
        try:
            run_interruptible(trainer.fit, board, on_note or (lambda line: None))
        except TrainingFailedError as error:
            raise _explained(error, name) from error
    if (failure := ray.get(board.failure.remote())) is not None:
        raise UserError(failure)
    if ray.get(board.stopped_at.remote()) is not None:
        raise KeyboardInterrupt
    stored = CheckpointStore(runs_uri, name).all()
    if not stored or stored[-1].nimg < launch.config.total_nimg:
        raise UserError(f"the run {name} left no checkpoint of its end under {runs_uri}: run it again")
    last: Report = ray.get(board.get.remote())
    return TrainingResult(name, launch.run_ids["run"], stored[-1].uri, last.metrics, last.train_seconds)


def _trainer(launch: _Launch, callbacks: Sequence[Any]) -> Any:
    """Ray Train's trainer of the run. Ray is told of no checkpoint: those are the run's own."""
    timeout = ELASTIC_START_TIMEOUT_S if launch.scale.elastic else START_TIMEOUT_S
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(timeout))
    import ray
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig

    config, scale = launch.config, launch.scale
    files, path = storage.filesystem(launch.runs_uri)
    return resources.trainer_class()(
        train_worker,
        train_loop_config={
            "config": to_dict(config),
            "config_fingerprint": fingerprint(config),
            "name": launch.name,
            "runs_uri": launch.runs_uri,
            "run_ids": dict(launch.run_ids),
            "networks": {"perceptual": launch.origin.perceptual, "frechet": launch.origin.frechet},
            "data": launch.origin.data,
            "start": launch.origin.start,
            "threads": scale.threads,
            "batch": scale.batch,
            # Holds secrets: as an object it is in no page or process list of Ray's.
            "environment": [ray.put(get_settings().export())],
            "board": launch.board,
        },
        torch_config=TorchConfig(backend="nccl" if scale.gpu else "gloo"),
        scaling_config=resources.scaling_config(scale),
        run_config=RunConfig(
            name=launch.name,
            storage_path=path,
            storage_filesystem=files,
            failure_config=FailureConfig(
                max_failures=MAX_ATTEMPTS, controller_failure_limit=MAX_CONTROLLER_FAILURES
            ),
            callbacks=[sigterm_callback(), *callbacks],
            worker_runtime_env={"env_vars": ({} if scale.gpu else MALLOC) | _temporary_folder()},
        ),
    )


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
