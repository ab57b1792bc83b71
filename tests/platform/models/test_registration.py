"""A registered version holds the generator and what says what it is; one generator is one version."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import pytest
from safetensors.torch import save_file

from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import registry
from mimic3d_platform.models.lineage import write_lineage
from mimic3d_platform.models.pull import pull, verify_folder, verify_version
from mimic3d_platform.models.registration import register_folder, register_generator
from mimic3d_platform.storage.digests import sha256_of_file
from mimic3d_platform.tracking.logger import RunLogger
from mimic3d_platform.tracking.server import client

Make = Callable[..., Path]


def test_a_version_holds_generator_cards_lineage_previews_and_shows_them(
    run_id: str, name: str, tmp_path: Path, generator_folder: Make
) -> None:
    folder = generator_folder()
    before = {path.name: sha256_of_file(path) for path in folder.iterdir()}
    logger = RunLogger(run_id)
    logger.log_metrics({"fd_mobilenetv2/3d": 40.0}, 3200)
    logger.flush()
    metrics = {"fd_mobilenetv2/3d": 40.0, "fd_mobilenetv2/3d_low": 38.5, "fd_mobilenetv2/3d_high": 41.5}
    assert register_generator(folder, name, run_id, metrics, step=3200) == 1
    assert {path.name: sha256_of_file(path) for path in folder.iterdir()} == before

    pulled = Path(pull(f"models:/{name}/1", tmp_path / "pulled"))
    assert verify_folder(pulled) == [
        "README.md",
        "config.yaml",
        "generator.safetensors",
        "lineage.json",
        "previews/grid.png",
        "previews/orbit.mp4",
        "previews/texture.png",
    ]
    assert sha256_of_file(pulled / "generator.safetensors") == before["generator.safetensors"]
    assert json.loads((pulled / "lineage.json").read_text(encoding="utf-8"))["run_id"] == run_id
    card = (pulled / "README.md").read_text(encoding="utf-8")
    assert "| `fd_mobilenetv2/3d` | 40 (38.5 to 41.5) |" in card and "previews/grid.png" in card
    assert imageio.imread(pulled / "previews" / "grid.png").std() > 5

    version = registry.version_of(f"models:/{name}/1")
    assert version.description.startswith("A 3D-aware generator (mimic3d, recipe cars-demo) of 16² images")
    assert version.tags["mimic3d.recipe"] == "cars-demo" and version.run_id == run_id
    assert version.source.startswith("mlflow-artifacts:/")  # A place, for clients that read the source.
    model = registry.logged_model_of(version)
    assert model is not None and model.status == "READY"
    assert {metric.key: metric.value for metric in model.metrics} == metrics
    assert model.params["model.image_resolution"] == "16"
    assert [output.model_id for output in client().get_run(run_id).outputs.model_outputs] == [model.model_id]
    # The run's own curve has no second point at that step.
    points = client().get_metric_history(run_id, "fd_mobilenetv2/3d")
    assert [(point.step, point.value) for point in points] == [(3200, 40.0)]
    assert {"MLmodel", "code/mimic3d_pyfunc.py"} <= set(verify_version(f"models:/{name}/1"))


@pytest.mark.usefixtures("no_previews")
def test_the_same_generator_is_one_version_and_another_one_a_second(
    run_id: str, name: str, generator_folder: Make
) -> None:
    first, second = generator_folder("a", 0), generator_folder("b", 1)
    versions = [register_generator(folder, name, run_id, {}) for folder in (first, first, second, second)]
    assert versions == [1, 1, 2, 2]


@pytest.mark.usefixtures("no_previews")
def test_registrations_of_one_generator_at_once_make_one_version(
    run_id: str, name: str, generator_folder: Make
) -> None:
    folder, versions = generator_folder(), []
    barrier = threading.Barrier(3)

    def register() -> None:
        barrier.wait()
        versions.append(register_generator(folder, name, run_id, {}))

    threads = [threading.Thread(target=register) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = [int(version.version) for version in registry.versions_of(name)]
    assert len(versions) == 3 and len(left) == 1 and set(versions) == set(left)
    verify_version(f"models:/{name}/{left[0]}")


@pytest.mark.usefixtures("no_previews")
def test_a_folder_that_no_run_made_is_registered_with_a_run_of_its_own_and_its_origin(
    stack, name: str, tmp_path: Path, generator_folder: Make
) -> None:
    folder = generator_folder("imported")
    origin = {"file": "cars.pkl", "sha256": "ab" * 32}
    write_lineage(folder, {"imported_from": origin})
    (folder / "README.md").write_text("Made by hand.\n", encoding="utf-8")
    (folder / "notes.pkl").write_bytes(b"a pickle")
    assert register_folder(folder, name) == register_folder(folder, name) == 1
    [version] = registry.versions_of(name)
    run = client().get_run(version.run_id)
    assert run.info.status == "FINISHED" and run.data.params["recipe"] == "cars-demo"
    pulled = Path(pull(f"models:/{name}/1", tmp_path / "pulled"))
    assert not (pulled / "notes.pkl").exists() and "notes.pkl" not in verify_version(f"models:/{name}/1")
    assert load_generator(pulled)[1] == load_generator(folder)[1]
    lineage = json.loads((pulled / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["imported_from"] == origin and "previous" not in lineage
    card = (pulled / "README.md").read_text(encoding="utf-8")
    assert "imported from: `cars.pkl`" in card and card.endswith("Made by hand.\n")

    # Registered again from what was pulled, it keeps where it comes from.
    assert register_folder(pulled, f"{name}-again") == 1
    again = Path(pull(f"models:/{name}-again/1", tmp_path / "again"))
    lineage = json.loads((again / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["previous"]["run_id"] == version.run_id and lineage["imported_from"] == origin
    card = (again / "README.md").read_text(encoding="utf-8")
    assert card.count("Made by hand.") == 1 and card.count("## Use") == 1


def test_a_folder_that_holds_no_generator_is_refused(stack, name: str, generator_folder: Make) -> None:
    folder = generator_folder()
    with pytest.raises(UserError, match="model name 'a/b': it must not be empty"):
        register_folder(folder, "a/b")
    save_file({}, folder / "generator.safetensors")
    with pytest.raises(UserError, match=r"generator.safetensors does not fit config.yaml"):
        register_folder(folder, name)
    (folder / "generator.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no generator.safetensors"):
        register_generator(folder, name, "run", {})
