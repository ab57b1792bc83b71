"""Sweeps for tests, with tiny networks on a data set of a box."""

from pathlib import Path
from typing import Any

import trimesh
import yaml

from mimic3d_command import mimic3d
from mimic3d_platform import tracking
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.tracking.server import client
from mimic3d_platform.tuning.trials import Trial, TrialRecords

TINY = {
    "model.channel_base": 128,
    "model.channel_max": 8,
    "model.discriminator_channel_base": 128,
    "model.discriminator_channel_max": 8,
    "model.superresolution_channels": [8, 8],
    "model.z_dim": 8,
    "model.w_dim": 8,
    "rendering.coarse_samples": 4,
    "rendering.importance_samples": 4,
    "schedule.stage1_kimg": 0.016,
    "schedule.stage2_kimg": 0.032,
    "output.checkpoint_kimg": 0.016,
    "output.sample_kimg": 0.032,
    "output.metric_kimg": 0.016,
    "output.log_steps": 1,
    "output.metric_images": 8,
    "output.metric_identities": 1,
}
OBJECTIVE = {"metric": "frechet/3d", "mode": "min"}


def render_box(folder: Path) -> str:
    """Renders a box from eight sides in two colours; returns the URI of the data set in object storage."""
    trimesh.creation.box((1.0, 0.4, 0.5)).export(folder / "0.ply")
    data = f"s3://mimic3d/test-{folder.name}"
    sizes = ("--colourings", 2, "--views", 8, "--resolution", 32, "--supersample", 1)
    rendered = mimic3d("data", "render", data, "--meshes", folder, *sizes)
    assert rendered.returncode == 0, rendered.stderr
    return data


def written(folder: Path, name: str, data: str, **keys: Any) -> Path:
    """Writes a sweep file of stage 2 at 32², in which `keys` replace the defaults."""
    path = folder / f"{name}.yaml"
    base = {
        "recipe": "cars-demo",
        "data": data,
        "overrides": TINY,
        "stage1": "shared",
        "objectives": [OBJECTIVE],
    }
    path.write_text(yaml.safe_dump(base | keys, sort_keys=False), encoding="utf-8")
    return path


def records(sweep: str) -> list[Trial]:
    """The records of a sweep's trials."""
    return TrialRecords(f"{DEFAULT_RUNS_URI}/{sweep}").all()


def run_of(name: str, parent: str | None = None) -> Any:
    """The MLflow run of this name."""
    experiment = client().get_experiment_by_name("mimic3d").experiment_id
    return tracking.find_run(experiment, name, parent)


def children_of(run_id: str) -> list[Any]:
    """The child runs of an MLflow run."""
    experiment = client().get_experiment_by_name("mimic3d").experiment_id
    return client().search_runs([experiment], f"tags.`{tracking.PARENT_TAG}` = '{run_id}'")
