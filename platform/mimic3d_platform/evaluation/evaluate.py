"""Measures a generator against a data set on a Ray cluster: `mimic3d evaluate`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d.config import Config, config_from_yaml, override, to_dict
from mimic3d_platform import storage, tracking
from mimic3d_platform.cluster import resources
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.data.format.dataset import check_trainable, open_dataset
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.evaluation.metrics import Evaluator
from mimic3d_platform.models import model_uris, registry
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.tracking import EXPERIMENT

MAX_FAILURES = 3


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a generator, and the run in MLflow that they were logged to."""

    metrics: dict[str, float]
    run_id: str


@dataclass(frozen=True)
class MeasureArguments:
    """What each worker of an evaluation is started with.

    Attributes:
        model_uri: see `model_uris`; of a registered model it names the version.
        network: the feature network of the Fréchet distance.
        cache_uri: where features of real images are kept.
    """

    model_uri: str
    config: Config
    network: str
    cache_uri: str


def evaluate(
    model: str,
    data_uri: str | None = None,
    *,
    images: int | None = None,
    identities: int | None = None,
    workers: int | None = None,
    cache_uri: str = DEFAULT_RUNS_URI,
) -> Evaluation:
    """Measures all metrics of a generator, and logs them to a run in MLflow.

    Metrics of a registered model are logged to the model too; the run is a child of the one that trained it.

    Args:
        model: `models:/NAME@ALIAS`, or the folder of a generator or of a training checkpoint.
        data_uri: the data set; the one that the generator was trained on when None.
        images: generated for the Fréchet distance; as many as the generator's config says when None.
        identities: whose views are compared; as many as the generator's config says when None.
        workers: as in `training.train`.
        cache_uri: where features of real images are kept.
    Raises:
        UserError: no such model or data set, or a service that does not answer.
    """
    model = storage.absolute(model)
    tracking.check_tracking()
    join_ray()
    version = registry.version_of(model) if registry.is_registered(model) else None
    # An alias may move while workers start: all of them fetch the version that it names now.
    model_uri = f"models:/{version.name}/{version.version}" if version else model
    with tempfile.TemporaryDirectory(prefix="mimic3d-evaluate-") as folder:
        digest = model_uris.folder_digest(model_uris.fetch(model_uri, Path(folder)))
        config = _config_of(Path(folder), model, data_uri, images, identities)
    manifest = open_dataset(config.data.uri)
    check_trainable(manifest, resolution=config.model.image_resolution, where=config.data.uri)
    plan = resources.plan_workers(override(config, {"schedule.accumulate": 1}), workers)
    network = feature_weights.best_available("frechet")
    metrics = _measure(MeasureArguments(model_uri, config, network, cache_uri), plan)
    size = f"{config.output.metric_images}-{config.output.metric_identities}"
    tags = {
        "mimic3d.model": model,
        "mimic3d.model.sha256": digest,
        "mimic3d.data": manifest.fingerprint,
        "mimic3d.frechet": network,
    }
    run_id = tracking.start_or_resume_run(
        EXPERIMENT,
        f"evaluate-{digest[:12]}-{manifest.fingerprint[:8]}-{network}-{size}",
        {"model": model, "data": config.data.uri, "output": to_dict(config)["output"]},
        tags,
        parent_run_id=version.run_id if version else None,
    )
    registry.log_model_metrics(run_id, metrics, version)
    tracking.finish_run(run_id)
    return Evaluation(metrics, run_id)


def _config_of(
    folder: Path, model: str, data_uri: str | None, images: int | None, identities: int | None
) -> Config:
    """The generator's own config, with the given values in place of its own."""
    file = model_uris.generator_folder(folder) / CONFIG
    if not file.is_file():
        raise UserError(f"{model} is no generator (it has no {CONFIG}): name a generator's folder or a model")
    config = config_from_yaml(file.read_text(), f"{model}/{CONFIG}")
    given = {
        "data.uri": storage.absolute(data_uri) if data_uri else None,
        "output.metric_images": images,
        "output.metric_identities": identities,
    }
    config = override(config, {key: value for key, value in given.items() if value is not None})
    if not config.data.uri:
        raise UserError(f"the config of {model} names no data set: give --data s3://…")
    return config


def _measure(arguments: MeasureArguments, plan: resources.WorkerPlan) -> dict[str, float]:
    from mimic3d_platform.cluster.train_workers import WorkersFailedError, run_train_workers

    storage.ensure_bucket(arguments.cache_uri)
    try:
        return run_train_workers(
            measure_worker,
            arguments,
            name="evaluations",
            storage_uri=arguments.cache_uri,
            plan=plan,
            max_failures=MAX_FAILURES,
        )
    except WorkersFailedError as error:
        raise UserError(f"{arguments.model_uri} could not be measured: {error}") from error


def measure_worker(arguments: MeasureArguments) -> dict[str, float]:
    """Measures a worker's share; every worker returns the metrics of the whole."""
    import ray.train
    from ray.train.torch import get_device

    context, device = ray.train.get_context(), get_device()
    with tempfile.TemporaryDirectory(prefix="mimic3d-evaluate-") as name:
        folder = model_uris.generator_folder(model_uris.fetch(arguments.model_uri, Path(name)))
        generator = load_generator(folder)[0].to(device)
    evaluator = Evaluator(
        arguments.config,
        arguments.network,
        arguments.cache_uri,
        device,
        context.get_world_rank(),
        context.get_world_size(),
    )
    return evaluator.measure(generator) | evaluator.measure_extra(generator)
