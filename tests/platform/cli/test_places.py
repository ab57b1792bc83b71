"""Every place that a command takes is a URI: `s3://…`, another scheme and local paths alike, or refused."""

import uuid
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.config import to_dict
from mimic3d.config.recipes import get_recipe
from mimic3d.networks.generator import build_generator
from mimic3d_command import error_of, mimic3d
from mimic3d_platform import storage
from mimic3d_platform.cli import app
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.registration import register_generator
from mimic3d_platform.settings import default_home, get_settings
from mimic3d_platform.tracking import start_or_resume_run
from mimic3d_platform.training.config_from_command import resolve_config

SMALL = ("--seeds", "0", "--views", "1")


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = get_recipe("cars-demo")
    return save_generator(tmp_path_factory.mktemp("places") / "generator", build_generator(config), config)


@pytest.fixture
def remote() -> str:
    """A fresh folder of object storage within this process."""
    return f"memory://places-{uuid.uuid4().hex[:8]}"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_generator_and_all_that_is_made_of_it_may_lie_elsewhere(
    generator: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.copy_tree(generator, f"{remote}/cars")
    storage.write_bytes(f"{remote}/path.json", b'{"yaw": [0, 1], "frames": 2}')
    run("render", f"{remote}/cars", f"{remote}/grid.png", *SMALL)
    run("render", f"{remote}/cars", f"{remote}/orbit.mp4", "--seeds", 0, "--cameras", f"{remote}/path.json")
    run("mesh", f"{remote}/cars", f"{remote}/car.ply", "--resolution", 8, "--level", "-100")
    assert storage.read_bytes(f"{remote}/grid.png").startswith(b"\x89PNG")
    assert storage.read_bytes(f"{remote}/orbit.mp4")[4:8] == b"ftyp"
    assert storage.read_bytes(f"{remote}/car.ply").startswith(b"ply")
    # The same through the local disk, by a path and by a URI.
    run("render", generator, "here.png", *SMALL)
    run("render", generator, f"file://{tmp_path}/there.png", *SMALL)
    made = storage.read_bytes(f"{remote}/grid.png")
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes() == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.png", "there.png"]


def test_a_config_file_may_lie_elsewhere(remote: str) -> None:
    config = get_recipe("cars-demo")
    storage.write_bytes(f"{remote}/config.yaml", yaml.safe_dump(to_dict(config)).encode())
    assert resolve_config(f"{remote}/config.yaml", "s3://mimic3d/data", ()).model == config.model
    with pytest.raises(UserError, match="there is no config file"):
        resolve_config(f"{remote}/none.yaml", "s3://mimic3d/data", ())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("render {g} s3:/mimic3d/x.png", "write s3://mimic3d/x.png"),
        ("render {g} s3:mimic3d/x.png", "write s3://mimic3d/x.png"),
        ("render {g} nosuch://host/x.png", "unknown scheme 'nosuch'"),
        ("render {g} s3:///x.png", "no bucket is named"),
        ("mesh {g} nosuch://host/x.ply", "unknown scheme 'nosuch'"),
        ("mesh {g} models:/cars@champion/x.ply", "names a model"),
        ("import-checkpoint {g}/generator.safetensors gs:/bucket/x", "write gs://bucket/x"),
        ("demo --folder s3://mimic3d/demo", "s3://mimic3d/demo is not a local path"),
        ("sweep sweeps/minutes.yaml --report s3://mimic3d/report", "is not a local path"),
        ("data render out --meshes nosuch://meshes", "unknown scheme 'nosuch'"),
        ("data inspect models:/cars@champion", "names a model"),
    ],
)
def test_what_is_no_place_is_refused_in_one_line_and_leaves_nothing(
    line: str, words: str, generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        run(*line.format(g=generator).split())
    assert not list(tmp_path.iterdir())


def test_state_and_cache_lie_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMIC3D_CACHE", "s3://mimic3d/cache")
    with pytest.raises(UserError, match="MIMIC3D_CACHE"):
        get_settings()
    monkeypatch.setenv("MIMIC3D_HOME", "s3://mimic3d/home")
    with pytest.raises(UserError, match="MIMIC3D_HOME"):
        default_home()


@pytest.mark.slow
def test_a_model_is_pulled_into_object_storage_and_used_from_there(
    generator: Path, s3_folder: str, tmp_path: Path
) -> None:
    name = f"cars-{uuid.uuid4().hex[:8]}"
    run_id = start_or_resume_run(f"test-{name}", "run")
    register_generator(generator, name, run_id, {})
    run("pull", f"models:/{name}/1", f"{s3_folder}/cars")
    for file in ("generator.safetensors", "config.yaml"):
        assert storage.read_bytes(f"{s3_folder}/cars/{file}") == (generator / file).read_bytes()
    run("render", f"{s3_folder}/cars", f"{s3_folder}/grid.png", *SMALL)
    assert "version 1" in run("register", f"{s3_folder}/cars", f"{name}-copy")
    # A bucket that is not there is known before anything is rendered.
    refused = mimic3d("render", generator, "s3://no-such-bucket/x.png", *SMALL, cwd=tmp_path)
    assert "there is no bucket 'no-such-bucket'" in error_of(refused)
    assert not list(tmp_path.iterdir())
