"""Models are fetched by their URIs, and verified against what was stored."""

from pathlib import Path

import pytest
import torch

from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.config.recipes import get_recipe
from mimic3d.export.latents import latents_of_seeds
from mimic3d.export.orbits import front
from mimic3d.networks.generator import build_generator
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import model_uris
from mimic3d_platform.models.checkpoints import CheckpointStore


def test_a_checkpoint_is_verified_against_its_manifest_and_its_former_digest(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "state.pt").write_bytes(b"weights")
    store = CheckpointStore(str(tmp_path), "stage1")
    stored = store.put(source, store.new_name(8), 8, {})
    assert model_uris.fingerprint(stored.uri) == stored.digest
    model_uris.fetch(stored.uri, tmp_path / "fetched", stored.digest)
    with pytest.raises(UserError, match="has changed since it was first read"):
        model_uris.fetch(stored.uri, tmp_path / "again", "0" * 64)
    storage.write_bytes(f"{stored.uri}/state.pt", b"weig")
    with pytest.raises(UserError, match=r"checkpoint .* is damaged: state.pt is not what was written"):
        model_uris.fetch(stored.uri, tmp_path / "damaged")


def test_a_generator_is_loaded_from_its_folder_and_from_within_a_checkpoint(tmp_path: Path) -> None:
    config = get_recipe("cars-demo")
    made = build_generator(config)
    save_generator(tmp_path / "a" / "generator", made, config)
    for uri in (str(tmp_path / "a" / "generator"), str(tmp_path / "a"), f"file://{tmp_path}/a"):
        loaded, its_config = model_uris.load_generator(uri)
        assert its_config == config
        weights = loaded.state_dict()
        assert all(torch.equal(weights[name].cpu(), tensor) for name, tensor in made.state_dict().items())
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere holds no config.yaml"):
        model_uris.load_generator(f"{tmp_path}/nowhere")


def test_a_generator_in_object_storage_is_loaded_by_its_uri(s3_folder: str, tmp_path: Path) -> None:
    config = get_recipe("cars-demo")
    save_generator(tmp_path / "generator", build_generator(config), config)
    storage.copy_tree(tmp_path, s3_folder)
    assert model_uris.load_generator(s3_folder)[1] == config
    (tmp_path / "generator" / "config.yaml").unlink()
    storage.copy_tree(tmp_path, f"{s3_folder}/damaged")
    with pytest.raises(UserError, match=f"{s3_folder}/damaged/generator holds no config.yaml"):
        model_uris.load_generator(f"{s3_folder}/damaged")


def test_the_model_that_comes_with_the_package_renders_cars_in_both_branches() -> None:
    generator, config = model_uris.load_generator("builtin:cars")
    assert config.recipe == "cars-small" and generator.branches == ("2d", "3d")
    camera = front(config.camera)
    with torch.no_grad():
        w = generator.mapping(latents_of_seeds(config.model, range(2)), camera.expand(2, -1))
        planes = generator.planes(w)
        for branch in generator.branches:
            image = generator.view(planes, w, camera.expand(2, -1), branch=branch).image
            border = torch.cat([image[..., 0, :], image[..., -1, :]])
            assert border.mean() > 0.9, "the background is white"
            assert image[:, :, 20:44, 20:44].mean() < 0.5, "a car is in the middle"


def test_a_model_that_does_not_come_with_the_package_is_refused_with_those_that_do() -> None:
    with pytest.raises(UserError, match="builtin:boats: no such model comes with mimic3d; known: cars"):
        model_uris.load_generator("builtin:boats")
