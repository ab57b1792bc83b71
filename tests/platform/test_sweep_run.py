"""Sweeps on real Ray Tune, Ray Train, MLflow and object storage, through the command; the networks are tiny.

One small sweep forks four trials from one stage 1, one trial of which cannot train; its driver is killed on
the way. A population of two goes through two generations. Patches of every scale train.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trimesh
import yaml

from mimic3d.checkpoints.folder import config_from_yaml
from mimic3d_command import error_of, mimic3d, start_mimic3d
from mimic3d_platform import local, runs, storage, tracking
from mimic3d_platform.mlflow_server import client
from mimic3d_platform.tuning.records import Records
from mimic3d_platform.tuning.report import PAGE, TABLE, WINNER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

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


@dataclass(frozen=True)
class Swept:
    """A sweep that was killed, run again, and run once more."""

    file: Path
    report: Path
    killed_with: list[str]
    """The names of the trials that were over when the driver was killed."""
    run: subprocess.CompletedProcess
    again: subprocess.CompletedProcess
    seconds_again: float


@pytest.fixture(scope="module")
def cars(stack: local.StackStatus, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("sweep-data")
    trimesh.creation.box((1.0, 0.4, 0.5)).export(root / "0.ply")
    data = f"s3://mimic3d/test-{root.name}"
    sizes = ("--colourings", 2, "--views", 8, "--resolution", 32, "--supersample", 1)
    rendered = mimic3d("data", "render", data, "--meshes", root, *sizes)
    assert rendered.returncode == 0, rendered.stderr
    return data


def written(folder: Path, name: str, data: str, **keys: Any) -> Path:
    path = folder / f"{name}.yaml"
    base = {
        "recipe": "cars-demo",
        "data": data,
        "overrides": TINY,
        "stage1": "shared",
        "objectives": [OBJECTIVE],
    }
    path.write_text(yaml.safe_dump(base | keys, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def swept(cars: str, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Four trials, the third of which asks for a start that is not there; all patch scales that 32² has."""
    root = tmp_path_factory.mktemp("sweep")
    cases = {
        "quarter": {"imitation.patch_scale": 0.25},
        "half": {"imitation.patch_scale": 0.5},
        "broken": {"optimizer.generator_lr": 1e30, "optimizer.discriminator_lr": 1e30},
        "whole": {"imitation.patch_scale": 1},
    }
    file = written(
        root,
        "scales",
        cars,
        cases=cases,
        search={"algorithm": "grid"},
        trials={"concurrency": 2, "failures": 1},
    )
    command = ["sweep", file, "--report", root / "report"]
    process = start_mimic3d(*command, log=root / "killed.log")
    deadline = time.monotonic() + 400
    while not (over := over_of("scales")):
        assert process.poll() is None and time.monotonic() < deadline, (root / "killed.log").read_text()
        time.sleep(0.2)
    process.kill()
    process.wait()
    run = mimic3d(*command, timeout=900)
    started = time.monotonic()
    again = mimic3d(*command)
    return Swept(file, root / "report", over, run, again, time.monotonic() - started)


def over_of(sweep: str) -> list[str]:
    return [trial.name for trial in records(sweep) if trial.over]


def records(sweep: str) -> list[Any]:
    return Records(f"{runs.DEFAULT_RUNS_URI}/{sweep}").all()


def test_a_sweep_goes_on_after_a_kill_and_past_a_trial_that_fails(swept: Swept) -> None:
    assert swept.run.returncode == 0, swept.run.stderr
    trials = records("scales")
    assert [trial.status for trial in trials] == ["finished", "finished", "failed", "finished"]
    assert "diverged" in trials[2].error or "finite" in trials[2].error
    # Ray itself warns of many processes on few CPUs.
    assert all("(raylet)" in line for line in swept.run.stderr.splitlines())
    # What was over when the driver was killed is not started again.
    started = re.findall(r"trial (\d+) starts", swept.run.stdout)
    assert not {f"scales-{int(index):03d}" for index in started} & set(swept.killed_with)


def test_all_trials_fork_from_one_stage1_and_train_patches_of_every_scale(swept: Swept) -> None:
    stage1 = json.loads(storage.read_bytes(f"{runs.DEFAULT_RUNS_URI}/scales-stage1/result.json"))
    scales = []
    for trial in records("scales"):
        config = config_from_yaml(
            storage.read_bytes(f"{runs.DEFAULT_RUNS_URI}/{trial.name}/config.yaml").decode(), trial.name
        )
        assert config.start == stage1["checkpoint_uri"] and config.stage1_nimg == 0
        if trial.status == "finished":
            scales.append(config.imitation.patch_scale)
            assert trial.nimg == config.total_nimg == 32
    assert scales == [0.25, 0.5, 1]


def test_mlflow_holds_the_sweep_its_trials_and_their_stages(swept: Swept) -> None:
    parent = run_of("scales")
    assert parent.info.status == "FINISHED"
    children = {run.info.run_name: run for run in children_of(parent.info.run_id)}
    assert set(children) == {"scales-stage1", *(f"scales-{index:03d}" for index in range(4))}
    for trial in records("scales"):
        run = children[trial.name]
        assert run.info.status == ("FAILED" if trial.status == "failed" else "FINISHED")
        assert run.data.tags["mimic3d.trial_ended"] == trial.status
        assert [stage.info.run_name for stage in children_of(run.info.run_id)] == [f"{trial.name}-stage2"]
        if trial.status == "finished":
            assert trial.metrics.items() <= run.data.metrics.items()
    best = min(
        (t for t in records("scales") if t.status == "finished"), key=lambda t: t.metrics["fd_mobilenetv2/3d"]
    )
    assert parent.data.metrics["best/fd_mobilenetv2/3d"] == best.metrics["fd_mobilenetv2/3d"]
    assert parent.data.metrics["best/trial"] == best.index


def test_the_report_is_in_a_folder_in_storage_and_in_mlflow(swept: Swept, tmp_path: Path) -> None:
    from PIL import Image

    names = {path.name for path in swept.report.iterdir()}
    assert {PAGE, TABLE, WINNER, "best.png", "parallel.png", "parameters.png"} <= names
    with Image.open(swept.report / "best.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 50
    page = (swept.report / PAGE).read_bytes()
    assert storage.read_bytes(f"{runs.DEFAULT_RUNS_URI}/scales/report/{PAGE}") == page
    tracking.download_artifacts(run_of("scales").info.run_id, "report", tmp_path)
    assert (tmp_path / PAGE).read_bytes() == page


def test_the_winning_config_is_one_that_trains(swept: Swept) -> None:
    best = min(
        (t for t in records("scales") if t.status == "finished"), key=lambda t: t.metrics["fd_mobilenetv2/3d"]
    )
    # Under the trial's own name it is the run that is there: not a key differs.
    told = mimic3d("train", swept.report / WINNER, "--name", best.name, "--workers", 1)
    assert told.returncode == 0, told.stderr
    assert "fd_mobilenetv2/3d" in told.stdout


def test_a_sweep_that_is_over_is_only_told_again(swept: Swept) -> None:
    assert swept.again.returncode == 0, swept.again.stderr
    assert "starts" not in swept.again.stdout and swept.seconds_again < 60


def test_a_name_stands_for_one_sweep(swept: Swept) -> None:
    said = error_of(mimic3d("sweep", swept.file, "--set", "seed=4"))
    assert "exists with other settings (config.seed 0 -> 4)" in said and "--name" in said


def test_a_sweep_that_would_starve_itself_says_so_before_it_starts(cars: str, tmp_path: Path) -> None:
    keys = {"space": {"seed": {"grid": [0, 1]}}, "search": {"algorithm": "grid"}}
    for words, trials in {
        "3 workers needs as many CPUs": {"workers": 3},
        "9 trials of 1 workers": {"concurrency": 9},
    }.items():
        file = written(tmp_path, "greedy", cars, trials=trials, **keys)
        assert words in error_of(mimic3d("sweep", file))
    assert not storage.exists(f"{runs.DEFAULT_RUNS_URI}/greedy/sweep.yaml")


def test_a_population_copies_weights_and_perturbs_values(swept: Swept, cars: str, tmp_path: Path) -> None:
    stage1 = f"{runs.DEFAULT_RUNS_URI}/scales-stage1"
    file = written(
        tmp_path,
        "family",
        cars,
        stage1=stage1,
        space={"optimizer.generator_lr": {"loguniform": [0.0001, 0.01]}},
        scheduler={"name": "pbt", "population": 2, "interval_kimg": 0.016, "quantile": 0.5, "resample": 0},
    )
    ran = mimic3d("sweep", file, "--report", tmp_path / "report", timeout=900)
    assert ran.returncode == 0, ran.stderr
    first, second = records("family")[:2], records("family")[2:]
    assert len(second) == 2 and all(trial.status == "finished" for trial in (*first, *second))
    donor = min(first, key=lambda trial: trial.metrics["fd_mobilenetv2/3d"])
    assert [trial.parent for trial in second] == [donor.index, donor.index]
    rates = [
        trial.point["optimizer.generator_lr"] / donor.point["optimizer.generator_lr"] for trial in second
    ]
    assert rates[donor.index] == 1 and rates[1 - donor.index] in (pytest.approx(0.8), pytest.approx(1.25))
    for trial in second:
        tags = run_of(trial.name, run_of("family").info.run_id).data.tags
        assert tags["mimic3d.start"] == donor.checkpoint_uri
    assert os.path.exists(tmp_path / "report" / "curves.png")


def run_of(name: str, parent: str | None = None) -> Any:
    experiment = client().get_experiment_by_name("mimic3d").experiment_id
    return tracking.find_run(experiment, name, parent)


def children_of(run_id: str) -> list[Any]:
    experiment = client().get_experiment_by_name("mimic3d").experiment_id
    return client().search_runs([experiment], f"tags.`{tracking.PARENT_TAG}` = '{run_id}'")
