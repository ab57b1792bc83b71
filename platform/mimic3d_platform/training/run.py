"""The main job: both stages of a recipe on Ray Train, from shards in object storage to a generator."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mimic3d.config import Config, override
from mimic3d_platform import storage, tracking
from mimic3d_platform.cluster import resources
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.data.format.dataset import check_trainable, open_dataset
from mimic3d_platform.errors import ClusterGoneError, UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.models import model_uris
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.training import mlflow_runs, runs
from mimic3d_platform.training.driver import followed, run_interruptible
from mimic3d_platform.training.progress import ProgressBoard, Report
from mimic3d_platform.training.stop_signals import listen

if TYPE_CHECKING:
    from ray.train import UserCallback

RESULT = "result.json"
# Limits groups of workers that fail before their training loop starts, which the board does not count.
MAX_ATTEMPTS = 100


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
    runs_uri: str = DEFAULT_RUNS_URI,
    workers: int | tuple[int, int] | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[UserCallback] = (),
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
    runs_uri = storage.absolute(runs_uri)
    places = {"data.uri": config.data.uri, "start": config.start}
    config = override(config, {key: storage.absolute(place) for key, place in places.items()})
    manifest = open_dataset(config.data.uri)
    check_trainable(manifest, resolution=config.model.image_resolution, where=config.data.uri)
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
    callbacks: Sequence[UserCallback],
    on_progress: Callable[[Report], None] | None,
    on_note: Callable[[str], None] | None,
) -> TrainingResult:
    # Ray Train and PyTorch take seconds to load: not before the checks above have passed.
    import ray

    from mimic3d_platform.cluster.train_workers import WorkersFailedError, run_train_workers
    from mimic3d_platform.training.worker import WorkerArguments, train_worker

    board, name, runs_uri = launch.board, launch.name, launch.runs_uri
    arguments = WorkerArguments(launch.config, name, runs_uri, launch.origin, launch.run_ids, board=board)

    def run_workers() -> None:
        run_train_workers(
            train_worker,
            arguments,
            name=name,
            storage_uri=runs_uri,
            scale=launch.scale,
            max_failures=MAX_ATTEMPTS,
            callbacks=callbacks,
            on_worker_start=listen,
        )

    if on_progress is not None:
        url = tracking.run_url(launch.run_ids["run"])
        on_progress(Report("starting the workers", 0, launch.config.total_nimg, url=url))
    with followed(board, on_progress, on_note):
        try:
            run_interruptible(run_workers, board, on_note or (lambda line: None))
        except WorkersFailedError as error:
            raise UserError(
                f"the run {name} failed: {error}; run the same command again to resume from its last "
                "checkpoint"
            ) from error
    if (failure := ray.get(board.failure.remote())) is not None:
        raise UserError(failure)
    if ray.get(board.stopped_at.remote()) is not None:
        raise KeyboardInterrupt
    stored = CheckpointStore(runs_uri, name).all()
    if not stored or stored[-1].nimg < launch.config.total_nimg:
        raise UserError(f"the run {name} left no checkpoint of its end under {runs_uri}: run it again")
    last: Report = ray.get(board.get.remote())
    return TrainingResult(name, launch.run_ids["run"], stored[-1].uri, last.metrics, last.train_seconds)
