"""Trains a run on a Ray cluster, from its config to its result: checks, identity, lock, MLflow, workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimic3d.config import Config, override
from mimic3d_platform import storage, tracking
from mimic3d_platform.cluster import resources
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.cluster.named_actors import run_lock
from mimic3d_platform.cluster.resources import WorkerPlan
from mimic3d_platform.data.format.dataset import check_trainable, open_dataset
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.models import model_uris
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.tracking.staged_run import StagedRun
from mimic3d_platform.training.extension import extend_run, read_extensions
from mimic3d_platform.training.metric_names import metrics_of_training, require_measured
from mimic3d_platform.training.mlflow_runs import start_mlflow_run
from mimic3d_platform.training.progress import ProgressReport
from mimic3d_platform.training.result import TrainingResult, read_result, write_result
from mimic3d_platform.training.run_identity import (
    RunOrigin,
    TrainingRun,
    check_name,
    check_origin,
    claim_run,
    read_origin,
)
from mimic3d_platform.training.scene_check import check_scene

if TYPE_CHECKING:
    from ray.train.v2.api.callback import UserCallback


@dataclass(frozen=True)
class CheckedTraining:
    """A training that can start.

    Attributes:
        config: with absolute places.
        manifest: of its data set.
        plan: its workers on this cluster.
        advice: about the data set's cameras; None for nothing.
    """

    config: Config
    manifest: Manifest
    plan: WorkerPlan
    advice: str | None


def check_training(config: Config, name: str, workers: int | tuple[int, int] | None) -> CheckedTraining:
    """Checks data, services, names and resources of a training; starts and changes nothing.

    Args:
        config, name, workers: as `train`.
    Raises:
        UserError: one of them does not allow it; says what to do.
    """
    check_name(name)
    rooted = {"data.uri": storage.absolute(config.data.uri), "start": storage.absolute(config.start)}
    config = override(config, rooted)
    manifest = open_dataset(config.data.uri)
    check_trainable(manifest, resolution=config.model.image_resolution, where=config.data.uri)
    advice = check_scene(config, manifest)
    tracking.check_tracking()
    join_ray()
    return CheckedTraining(config, manifest, resources.plan_workers(config, workers), advice)


def train(
    config: Config,
    name: str,
    *,
    runs_uri: str = DEFAULT_RUNS_URI,
    workers: int | tuple[int, int] | None = None,
    extend: bool = False,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[UserCallback] = (),
    on_progress: Callable[[ProgressReport], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Trains a run to its end, resuming from its last checkpoint if it exists.

    It may be called in a Ray task, in a trial of Ray Tune (with its `TuneReportCallback` among `callbacks`)
    and in any thread. Only in a program's main thread do Ctrl-C and SIGTERM store a checkpoint first.

    Args:
        config: with `data.uri` set.
        name: of the run. The same config under it resumes the run, another one is refused.
        runs_uri: the folder that holds all runs, `s3://…` or local.
        workers: Ray Train workers, of one GPU each where the cluster has any, else of one CPU. None takes
            all; (least, most) takes as many as there is room for, whenever workers start.
        extend: accepts a config that is longer than the run's, and nothing else; see `extension`.
        parent_run_id: the MLflow run below which this one is shown, such as a sweep's.
        tags: for the MLflow run.
        callbacks: of Ray Train; receive {"nimg", "kimg", newest metrics} with every checkpoint.
        on_progress: receives the newest report about once a second.
        on_note: receives lines for the user: damaged checkpoints, storage that does not answer.
    Raises:
        UserError: data, services, names or resources do not allow the run; says what to do.
        KeyboardInterrupt: it was stopped by a signal; what it had done is stored.
    """
    runs_uri = storage.absolute(runs_uri)
    checked = check_training(config, name, workers)
    config, manifest, plan = checked.config, checked.manifest, checked.plan
    if checked.advice is not None and on_note is not None:
        on_note(checked.advice)
    origin = _origin(config, name, runs_uri, manifest.fingerprint)
    if best := config.output.keep_best:
        logged = metrics_of_training(config, origin.frechet).values()
        require_measured(best, {name: name for name in logged}, "output.keep_best")
    # The lock is held from the first look at the run: between looking and training another process could
    # extend it, or train it to its end.
    with run_lock(runs_uri, name):
        if extend:
            # Before anything is replaced: a run whose data have changed keeps its config and its result.
            if (known := read_origin(runs_uri, name)) is not None:
                check_origin(name, config, known, origin)
            line = extend_run(runs_uri, name, config)
            if line is not None and on_note is not None:
                on_note(line)
        if claim_run(runs_uri, name, config, origin) and (result := read_result(runs_uri, name)) is not None:
            return result
        # Loads Ray Train and PyTorch, which takes seconds: only once the checks have passed.
        from mimic3d_platform.training.driver import run_workers

        mlflow: StagedRun | None = None
        try:
            extensions = read_extensions(runs_uri, name)
            mlflow = start_mlflow_run(config, name, origin, manifest, extensions, parent_run_id, tags)
            former = [extension.config for extension in extensions]
            run = TrainingRun(config, name, runs_uri, origin, mlflow, former)
            result = run_workers(run, plan, callbacks, on_progress, on_note)
        except BaseException as error:
            if mlflow is not None:
                mlflow.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        mlflow.finish("FINISHED")
        write_result(runs_uri, result)
    return result


def _origin(config: Config, name: str, runs_uri: str, data: str) -> RunOrigin:
    """The run's origin, with the feature networks that it began with.

    They are chosen here, once: workers that chose for themselves could differ when a server comes or goes.
    """
    start = model_uris.fingerprint(config.start) if config.start else ""
    known = read_origin(runs_uri, name)
    if known is not None and known.perceptual:
        return RunOrigin(data, start, known.perceptual, known.frechet)
    perceptual, frechet = (feature_weights.best_available(purpose) for purpose in ("perceptual", "frechet"))
    return RunOrigin(data, start, perceptual, frechet)
