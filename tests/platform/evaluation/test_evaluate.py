"""`mimic3d evaluate` of a registered model, on real Ray, MLflow and object storage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import camera_of, png

from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.config import override
from mimic3d.config.recipes import get_recipe
from mimic3d.networks.generator import build_generator
from mimic3d_command import mimic3d
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.models.registry import logged_model_of
from mimic3d_platform.tracking.server import client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MODEL = "cars-evaluated"


@pytest.fixture
def model(s3_folder: str, tmp_path: Path) -> str:
    """A registered generator, whose config names a data set of noise in object storage."""
    random = np.random.default_rng(0)
    writer = DatasetWriter(f"{s3_folder}/noise", 32, {"tool": "test"}, columns=("image", "camera"))
    for row in range(12):
        image = png(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        writer.write({"image": image, "camera": camera_of(300 * row).numpy()})
    writer.close()
    sizes = {"output.metric_images": 8, "output.metric_identities": 1}
    config = override(get_recipe("cars-demo"), {"data.uri": f"{s3_folder}/noise", **sizes})
    torch.manual_seed(0)
    save_generator(tmp_path / "generator", build_generator(config), config)
    registered = mimic3d("register", tmp_path / "generator", MODEL, "--alias", "champion")
    assert registered.returncode == 0, registered.stderr
    return f"models:/{MODEL}@champion"


def test_metrics_are_printed_and_reach_mlflow_s_run_and_model(model: str) -> None:
    evaluated = mimic3d("evaluate", model, "--workers", 2, "--views", 4, timeout=1500)
    assert evaluated.returncode == 0, evaluated.stderr
    version = client().get_model_version_by_alias(MODEL, "champion")
    logged = logged_model_of(version)
    assert logged is not None
    metrics = {metric.key: metric.value for metric in logged.metrics}
    names = [name for name in metrics if not name.endswith(("_low", "_high"))]
    # The views of an untrained generator do not overlap: the metrics of warped views are left out.
    assert {name.split("_")[0] for name in names} >= {"field", "fields", "precision", "coverage"}
    assert {name.split("/")[1] for name in names} == {"2d", "3d", "3d-2d"}
    assert len(metrics) == 3 * len(names)
    for name in names:
        assert f"{name} " in evaluated.stdout and f"{metrics[name]:.4g}" in evaluated.stdout
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    [run_id] = {metric.run_id for metric in logged.metrics}
    run = client().get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.metrics == metrics
    assert run.data.tags["mlflow.parentRunId"] == version.run_id
    assert (
        run.data.params["evaluation.seed"] == "0"
        and len(run.data.params["evaluation.extractor sha256"]) == 64
    )
    [reals] = run.inputs.dataset_inputs
    assert reals.dataset.name == "noise" and reals.dataset.digest in run.data.tags["mimic3d.data"]
