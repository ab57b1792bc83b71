"""Measures a generator against a data set on a Ray cluster: `mimic3d evaluate`."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimic3d.config import Config, from_dict, override, to_dict
from mimic3d_platform import storage, tracking
from mimic3d_platform.cluster import resources
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.data.format.dataset import open_dataset, require
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.models import model_uris, registry
from mimic3d_platform.settings import get_settings
from mimic3d_platform.training import runs
from mimic3d_platform.training.mlflow_runs import EXPERIMENT

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Measured:
    """What was measured, and the run in MLflow that holds it."""

    metrics: dict[str, float]
    run_id: str


def evaluate(
    model: str,
    data_uri: str | None = None,
    *,
    images: int | None = None,
    identities: int | None = None,
    workers: int | None = None,
    cache_uri: str = runs.DEFAULT_RUNS_URI,
) -> Measured:
    """All metrics of a generator, in MLflow as well: a run below the one that trained it, and with the model.

    Args:
        model: a generator's folder, a training checkpoint's, or `models:/NAME@ALIAS`.
        data_uri: the data set; the one it was trained on when None.
        images: generated for the Fréchet distance; as the generator's config says when None.
        identities: whose views are compared; likewise.
        workers: as in `training.train`.
        cache_uri: where features of real images are kept.
    Raises:
        UserError: no such model or data set, or services that do not answer.
    """
    model = storage.rooted(model)
    tracking.check_tracking()
    join_ray()
    with tempfile.TemporaryDirectory(prefix="mimic3d-evaluate-") as folder:
        digest = model_uris.folder_digest(model_uris.fetch(model, Path(folder)))
        config = _config_of(Path(folder), model, data_uri, images, identities)
    manifest = open_dataset(config.data.uri)
    require(manifest, resolution=config.model.image_resolution, where=config.data.uri)
    scale = resources.plan(override(config, {"schedule.accumulate": 1}), workers)
    network = feature_weights.best_available("frechet")
    metrics = _measure(model, config, network, cache_uri, scale)
    size = f"{config.output.metric_images}-{config.output.metric_identities}"
    tags = {
        "mimic3d.model": model,
        "mimic3d.model.sha256": digest,
        "mimic3d.data": manifest.fingerprint,
        "mimic3d.frechet": network,
    }
    version = registry.version_of(model) if model.startswith("models:/") else None
    run_id = tracking.start_or_resume_run(
        EXPERIMENT,
        f"evaluate-{digest[:12]}-{manifest.fingerprint[:8]}-{network}-{size}",
        {"model": model, "data": config.data.uri, "output": to_dict(config)["output"]},
        tags,
        parent_run_id=version.run_id if version else None,
    )
    registry.log_model_metrics(run_id, metrics, version)
    tracking.finish_run(run_id)
    return Measured(metrics, run_id)


def _config_of(
    folder: Path, model: str, data_uri: str | None, images: int | None, identities: int | None
) -> Config:
    """The generator's own config, with what is asked for in place of what it says."""
    from mimic3d.checkpoints.folder import CONFIG, config_from_yaml

    file = model_uris.generator_folder(folder) / CONFIG
    if not file.is_file():
        raise UserError(f"{model} is no generator (it has no {CONFIG}): name a generator's folder or a model")
    config = config_from_yaml(file.read_text(), f"{model}/{CONFIG}")
    asked = {
        "data.uri": storage.rooted(data_uri) if data_uri else None,
        "output.metric_images": images,
        "output.metric_identities": identities,
    }
    config = override(config, {key: value for key, value in asked.items() if value is not None})
    if not config.data.uri:
        raise UserError(f"{model} says of no data set that it was trained on: give --data s3://…")
    return config


def _measure(
    model: str, config: Config, network: str, cache_uri: str, scale: resources.Scale
) -> dict[str, float]:
    import ray
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    storage.ensure_bucket(cache_uri)
    files, path = storage.filesystem(cache_uri)
    trainer = TorchTrainer(
        measure_worker,
        train_loop_config={
            "model": model,
            "config": to_dict(config),
            "network": network,
            "cache_uri": cache_uri,
            "threads": scale.threads,
            "environment": [ray.put(get_settings().export())],
        },
        torch_config=TorchConfig(backend="nccl" if scale.gpu else "gloo"),
        scaling_config=resources.scaling_config(scale),
        run_config=RunConfig(
            name="evaluations",
            storage_path=path,
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=MAX_ATTEMPTS, controller_failure_limit=MAX_ATTEMPTS),
        ),
    )
    try:
        return dict(trainer.fit().return_value)
    except TrainingFailedError as error:
        causes = [str(cause) for cause in getattr(error, "worker_failures", {}).values()]
        lines = (causes or [str(error)])[0].strip().splitlines()
        raise UserError(f"{model} could not be measured: {lines[-1].strip()}") from error


def measure_worker(job: dict[str, Any]) -> dict[str, float]:
    """A worker's share of the measuring; all return the metrics of the whole."""
    import ray
    import torch
    from ray.train.torch import get_device

    from mimic3d.checkpoints.folder import load_generator
    from mimic3d_platform.evaluation.evaluator import Evaluator

    os.environ.update(ray.get(job["environment"][0]))
    torch.set_num_threads(job["threads"])
    context, device = ray.train.get_context(), get_device()
    with tempfile.TemporaryDirectory(prefix="mimic3d-evaluate-") as name:
        folder = model_uris.generator_folder(model_uris.fetch(job["model"], Path(name)))
        generator = load_generator(folder)[0].to(device)
    evaluator = Evaluator(
        from_dict(job["config"]),
        job["network"],
        job["cache_uri"],
        device,
        context.get_world_rank(),
        context.get_world_size(),
    )
    return evaluator.measure(generator) | evaluator.measure_more(generator)
