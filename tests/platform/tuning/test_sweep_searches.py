"""Sweeps by other searches than a grid, on real Ray Tune, Ray Train, MLflow and object storage.

A population of two goes through two generations; successive halving stops trials early and goes on after a
Ctrl-C; TPE looks for two objectives within a budget of images.
"""

from __future__ import annotations

import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from mimic3d.config import config_from_yaml
from mimic3d_command import mimic3d, start_mimic3d
from mimic3d_platform import local, storage
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.tuning.report import WINNER
from tiny_sweeps import OBJECTIVE, TINY, children_of, records, render_box, run_of, written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
PATIENCE_S = 900
FRECHET = "fd_efficientnetlite2mid/3d"
RATE = "optimizer.generator_lr"


@pytest.fixture(scope="module")
def cars(stack: local.StackStatus, tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_box(tmp_path_factory.mktemp("searched-data"))


@pytest.fixture(scope="module")
def stage1(cars: str) -> str:
    """A run of both stages; the sweeps fork from the end of its first."""
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={_text(value)}")]
    trained = mimic3d("train", "cars-demo", "--data", cars, "--name", "base", *settings, timeout=PATIENCE_S)
    assert trained.returncode == 0, trained.stderr
    return f"{DEFAULT_RUNS_URI}/base"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def test_a_population_copies_weights_and_perturbs_values(stage1: str, cars: str, tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "family",
        cars,
        stage1=stage1,
        space={RATE: {"loguniform": [0.0001, 0.01]}},
        scheduler={"name": "pbt", "population": 2, "interval_kimg": 0.016, "quantile": 0.5, "resample": 0},
    )
    ran = mimic3d("sweep", file, "--report", tmp_path / "report", timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    first, second = records("family")[:2], records("family")[2:]
    assert len(second) == 2 and all(trial.status == "finished" for trial in (*first, *second))
    for trial in first:
        place = f"{DEFAULT_RUNS_URI}/{trial.name}/config.yaml"
        config = config_from_yaml(storage.read_bytes(place).decode(), place)
        assert config.start.startswith(f"{stage1}/checkpoints/000000016-")
    donor = min(first, key=lambda trial: trial.metrics[FRECHET])
    assert [trial.parent for trial in second] == [donor.index, donor.index]
    best = donor.point[RATE]
    assert second[donor.index].point[RATE] == best
    # Within the space, whose bounds the best value may be near.
    near = [min(max(best * factor, 0.0001), 0.01) for factor in (0.8, 1.25)]
    assert second[1 - donor.index].point[RATE] in near
    for trial in second:
        tags = run_of(trial.name, run_of("family").info.run_id).data.tags
        assert tags["mimic3d.start"] == donor.checkpoint_uri
    assert (tmp_path / "report" / "curves.png").is_file()


def test_successive_halving_stops_the_worse_and_resumes_after_ctrl_c(
    stage1: str, cars: str, tmp_path: Path
) -> None:
    # One trial after the other, so that what each is compared with is known.
    file = written(
        tmp_path,
        "halved",
        cars,
        stage1=stage1,
        space={RATE: {"grid": [0.002, 0.05, 0.0005, 0.01]}},
        search={"algorithm": "grid"},
        scheduler={"name": "asha", "grace_kimg": 0.016, "reduction": 2},
        trials={"concurrency": 1},
    )
    command = ["sweep", file, "--report", tmp_path / "report"]
    process = start_mimic3d(*command, log=tmp_path / "log")
    deadline = time.monotonic() + PATIENCE_S
    while sum(trial.ended for trial in records("halved")) < 2 or records("halved")[-1].ended:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text(
            encoding="utf-8"
        )
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE_S) == 130
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert said.splitlines()[-1].startswith("error: stopped; run the same command again"), said
    parent = run_of("halved").info
    assert parent.status == "KILLED"
    assert {run.info.status for run in children_of(parent.run_id)} <= {"FINISHED", "KILLED"}

    ran = mimic3d(*command, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    trials = records("halved")
    assert [trial.index for trial in trials] == [0, 1, 2, 3]
    at_rung = [next(r[FRECHET] for r in trial.reports if r["nimg"] == 16) for trial in trials]
    for trial in trials[1:]:
        worse = at_rung[trial.index] > statistics.median(at_rung[: trial.index])
        assert trial.status == ("stopped" if worse else "finished"), (trial, at_rung)
        assert trial.nimg == (16 if worse else 32)
    runs_there = {run.info.run_name: run for run in children_of(parent.run_id)}
    assert set(runs_there) == {trial.name for trial in trials}
    for trial in trials:
        run = runs_there[trial.name]
        assert run.info.status == "FINISHED" and run.data.tags["mimic3d.trial_ended"] == trial.status
        assert [stage.info.status for stage in children_of(run.info.run_id)] == ["FINISHED"]


def test_tpe_searches_for_a_front_within_a_budget_of_images(stage1: str, cars: str, tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "front",
        cars,
        stage1=stage1,
        space={RATE: {"loguniform": [0.0001, 0.01]}, "imitation.lpips_weight": {"quniform": [0, 2, 0.5]}},
        objectives=[OBJECTIVE, {"metric": "warp_share/3d", "mode": "max"}],
        search={"algorithm": "tpe", "startup": 2},
        budget={"kimg": 0.13},
    )
    ran = mimic3d("sweep", file, "--report", tmp_path / "report", timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    assert all("(raylet)" in line for line in ran.stderr.splitlines()), ran.stderr
    trials = records("front")
    assert [trial.status for trial in trials] == ["finished"] * 4  # 0.032 kimg each.
    names = {path.name for path in (tmp_path / "report").iterdir()}
    front = [name for name in names if name.startswith("front-")]
    assert {WINNER, "front.png"} <= names and len(front) < 4
    for name in (WINNER, *front):
        assert config_from_yaml(
            (tmp_path / "report" / name).read_text(encoding="utf-8"), name
        ).start.startswith(stage1)
