"""Bad input, as a user meets it: the real command, real services, one line on standard error, status 2."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from mimic3d.checkpoints.file_names import GENERATOR_WEIGHTS
from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.config.recipes import get_recipe
from mimic3d.networks.generator import build_generator
from mimic3d_command import error_of, forked_mimic3d, mimic3d
from mimic3d_platform import local, storage
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.format.manifest import MANIFEST
from mimic3d_platform.data.render.render_dataset import render_dataset
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.training.run_identity import RunOrigin, claim_run

PATIENCE_S = 60
RECIPE = "cars-demo"


@pytest.fixture(scope="module")
def places(stack: local.StackStatus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the cases below name in braces: data sets and generators, whole and in every state of ruin."""
    root = tmp_path_factory.mktemp("places")
    meshes, broken = root / "meshes", root / "broken"
    for folder in (meshes, broken, root / "empty"):
        folder.mkdir()
    trimesh.creation.box((1.0, 0.4, 0.5)).export(meshes / "box.ply")
    (broken / "words.obj").write_text("v 0 0 0\nf 1 2 3\n", encoding="utf-8")
    (broken / "noise.glb").write_bytes(np.random.default_rng(0).bytes(500))
    data = f"s3://mimic3d/test-cli-{root.name}"
    render_dataset(data, 32, colourings=1, views=4, seed=0, meshes=meshes, supersample=1)

    half, blind = root / "half", root / "blind"
    storage.copy_tree(data, half)
    (half / MANIFEST).unlink()
    with DatasetWriter(str(blind), 32, {}, columns=("image", "identity")) as writer:
        writer.write({"image": b"", "identity": "nobody"})

    config = get_recipe(RECIPE)
    generator = build_generator(config)
    save_generator(root / "generator", generator, config)
    shutil.copytree(root / "generator", root / "damaged")
    (root / "damaged" / GENERATOR_WEIGHTS).write_bytes(
        (root / "generator" / GENERATOR_WEIGHTS).read_bytes()[:1000]
    )
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
    save_generator(root / "void", generator, config)
    (root / "noise.yaml").write_bytes(b"\xa4\xff")
    (root / "list.yaml").write_text("- schedule\n", encoding="utf-8")
    claim_run(str(root / "runs"), "taken", config, RunOrigin("another"))
    return {"root": str(root), "data": data, "home": str(root / "home"), "recipe": RECIPE}


TRAIN = "train {recipe} --data {data}"

# The command line, and words that its one line must have: what was wrong, and what to do.
REFUSED = {
    "no such command": ("trian", "No such command 'trian'", "mimic3d --help"),
    "no such option": (f"{TRAIN} --seed 1", "--seed", "mimic3d train --help"),
    "argument missing": ("train", "Missing argument 'recipe'", "mimic3d train --help"),
    "option of another type": (f"{TRAIN} --workers two", "--workers", "number"),
    "unknown recipe": ("train cars-demi --data {data}", "unknown recipe cars-demi", "did you mean cars-demo"),
    "no config file": ("train {root}/none.yaml --data {data}", "none.yaml", "check the path"),
    "config file of noise": ("train {root}/noise.yaml --data {data}", "noise.yaml", "UTF-8"),
    "config file of a list": ("train {root}/list.yaml --data {data}", "section of keys"),
    "unknown key": (f"{TRAIN} --set imitation.lpips_wieght=1", "did you mean imitation.lpips_weight"),
    "wrong type": (f"{TRAIN} --set schedule.batch=four", "schedule.batch is 'four'", "a whole number"),
    "impossible combination": (f"{TRAIN} --set imitation.patch_scale=0.3", "imitation.patch_scale", "0.5"),
    "negative number": (f"{TRAIN} --set schedule.batch=-8", "schedule.batch is -8", "at least 1"),
    "no value": (f"{TRAIN} --set schedule.batch", "--set schedule.batch", "KEY=VALUE"),
    "no data named": ("train {recipe}", "no data set is named", "--data"),
    "data missing": ("train {recipe} --data s3://mimic3d/none", "s3://mimic3d/none", "check the URI"),
    "bucket missing": ("train {recipe} --data s3://no-such-bucket/x", "s3://no-such-bucket/x", "check"),
    "scheme unknown": ("train {recipe} --data ftp://host/x", "unknown scheme 'ftp'", "s3://"),
    "data empty": ("train {recipe} --data {root}/empty", "{root}/empty is empty", "data render"),
    "data half-written": ("train {recipe} --data {root}/half", "half-written", "again"),
    "data of another size": ("train cars64 --data {data}", "32×32", "64×64"),
    "data without cameras": ("train {recipe} --data {root}/blind", "has no cameras", "add a camera column"),
    "run name": (f"{TRAIN} --name ../x", "run name '../x'", "letters"),
    "too many workers": (f"{TRAIN} --workers 3", "3 workers", "cluster has 2", "--workers"),
    "no worker": (f"{TRAIN} --workers 0", "0 workers", "--workers"),
    "batch that cannot be split": (
        f"{TRAIN} --workers 2 --set schedule.batch=5 --set schedule.stage1_kimg=0.01 "
        "--set schedule.stage2_kimg=0.01 --set output.checkpoint_kimg=0.01 --set output.sample_kimg=0.01",
        "schedule.batch 5 cannot be split among 2 workers",
        "change either",
    ),
    "name of another config": (
        f"{TRAIN} --name taken --runs {{root}}/runs",
        "the run taken exists with another config",
        "data.uri",
        "--name",
    ),
    "render nothing": ("data render {root}/new --views 0", "views is 0"),
    "render below nothing": ("data render {root}/new --resolution -1", "resolution is -1"),
    "no mesh folder": ("data render {root}/new --meshes {root}/none", "no mesh folder at {root}/none"),
    "no mesh": ("data render {root}/new --meshes {root}/empty", "no mesh file", "OBJ, GLB, glTF or PLY"),
    "only broken meshes": ("data render {root}/new --meshes {root}/broken", "none of its 2 mesh files"),
    "another set there": ("data render {data} --meshes {root}/meshes", "already holds", "--overwrite"),
    "inspect nothing": ("data inspect {root}/none", "no data set at {root}/none"),
    "model unknown": ("pull models:/none@champion {root}/new", "no model 'none'", "it has"),
    "model URI": ("pull models:cars {root}/new", "'models:cars'", "models:/NAME@ALIAS"),
    "neither grid nor video": ("render {root}/generator {root}/new.jpg", ".png", ".mp4"),
    "no identity": (
        "render {root}/generator {root}/new.png --seeds 5-3",
        "seeds are '5-3': give numbers and ranges",
    ),
    "truncation of no number": ("render {root}/generator {root}/new.png --truncation nan", "truncation"),
    "no generator": ("render {root}/empty {root}/new.png", "{root}/empty", "not a generator"),
    "damaged generator": ("render {root}/damaged {root}/new.png", "damaged", "again"),
    "place that cannot be": ("render {root}/generator /dev/null/new.png --views 1", "cannot write /dev/null"),
    "mesh of another kind": ("mesh {root}/generator {root}/new.stl", ".ply or .glb"),
    "mesh of nothing": ("mesh {root}/void {root}/new.ply --resolution 8", "no surface", "train for longer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_of_what_and_what_to_do(case: str, places: dict[str, str]) -> None:
    line, *words = REFUSED[case]
    started = time.monotonic()
    said = error_of(forked_mimic3d(*line.format(**places).split()))
    assert time.monotonic() - started < PATIENCE_S
    for word in words:
        assert word.format(**places) in said, said
    assert not list(Path(places["root"]).glob("new*"))


SERVICES = {
    "S3 is down": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        "nothing answers at http://127.0.0.1:9",
        "mimic3d up",
    ),
    "wrong credentials": (
        {"AWS_ACCESS_KEY_ID": "stranger", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"},
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "half a key pair": ({"AWS_SECRET_ACCESS_KEY": None, "MIMIC3D_HOME": "{home}"}, "set both or none"),
    "no credentials": (
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "MIMIC3D_HOME": "{home}"},
        "no credentials for object storage",
        "mimic3d up",
    ),
    "MLflow is down": ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "no MLflow server", "mimic3d up"),
    "no MLflow": ({"MLFLOW_TRACKING_URI": None, "MIMIC3D_HOME": "{home}"}, "no MLflow server is named"),
    "Ray is down": ({"RAY_ADDRESS": "127.0.0.1:9"}, "no Ray cluster at 127.0.0.1:9", "mimic3d up"),
    "no Ray": ({"RAY_ADDRESS": None, "MIMIC3D_HOME": "{home}"}, "no Ray cluster is named", "mimic3d up"),
}


@pytest.mark.parametrize("case", SERVICES)
def test_a_service_that_is_not_there_is_one_line(case: str, places: dict[str, str]) -> None:
    changes, *words = SERVICES[case]
    environment = {name: value and value.format(**places) for name, value in changes.items()}
    started = time.monotonic()
    run = forked_mimic3d(*TRAIN.format(**places).split(), "--name", "never", **environment)
    said = error_of(run)
    assert time.monotonic() - started < PATIENCE_S
    assert all(word in said for word in words), said
    assert "hunter2" not in run.stdout + run.stderr
    assert not storage.exists(f"{DEFAULT_RUNS_URI}/never")


@pytest.mark.slow
def test_broken_meshes_are_skipped_and_named(places: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(Path(places["root"], "broken"), tmp_path / "mixed")
    shutil.copy(Path(places["root"], "meshes", "box.ply"), tmp_path / "mixed")
    sizes = ("--resolution", 16, "--colourings", 1, "--views", 2)
    run = mimic3d("data", "render", tmp_path / "set", "--meshes", tmp_path / "mixed", *sizes)
    assert run.returncode == 0, run.stderr
    assert "2 images of 1 identities" in run.stdout
    skipped = run.stderr.splitlines()
    assert len(skipped) == 2 and all(line.startswith("skipped the mesh ") for line in skipped), run.stderr
    assert "noise.glb" in run.stderr and "words.obj" in run.stderr


def test_a_dry_run_says_what_a_training_would_take_and_starts_nothing(places: dict[str, str]) -> None:
    line = TRAIN.format(**places).split()
    run = forked_mimic3d(*line, "--name", "dry", "--dry-run", "--workers", 2, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "recipe: cars-demo" in run.stdout and "2, a CPU each" in run.stdout
    assert run.stdout.count("images/s") == 2 and "Nothing was started" in run.stdout
    assert not storage.exists(f"{DEFAULT_RUNS_URI}/dry")
    assert "the cluster has 2" in error_of(forked_mimic3d(*line, "--dry-run", "--workers", 4))


def test_help_answers_at_once_without_the_heavy_libraries() -> None:
    started = time.monotonic()
    run = mimic3d("train", "--help")
    assert run.returncode == 0 and "--data" in run.stdout and not run.stderr
    assert time.monotonic() - started < 3
