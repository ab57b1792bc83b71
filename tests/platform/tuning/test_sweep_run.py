"""Sweeps on real Ray Tune, Ray Train, MLflow and object storage, through the command; the networks are tiny.

One small sweep forks three trials from one stage 1, one trial of which cannot train; its driver is killed on
the way. Those that search in other ways are in `test_sweep_searches`.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from leaked_secrets import assert_no_secret_leaked
from mimic3d.config import config_from_yaml
from mimic3d_command import error_of, mimic3d, start_mimic3d
from mimic3d_platform import local, storage, tracking
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.tuning.report import PAGE, TABLE, WINNER
from tiny_sweeps import children_of, records, render_box, run_of, written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
# For whatever the machine does beside.
PATIENCE_S = 900


@dataclass(frozen=True)
class Swept:
    """A sweep that was killed, run again, and run once more."""

    file: Path
    report: Path
    killed_with: list[str]
    """The names of the trials that had ended when the driver was killed."""
    said: str
    """What the killed driver had printed."""
    run: subprocess.CompletedProcess
    again: subprocess.CompletedProcess


@pytest.fixture(scope="module")
def cars(stack: local.StackStatus, tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_box(tmp_path_factory.mktemp("sweep-data"))


@pytest.fixture(scope="module")
def swept(cars: str, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Three trials, the second of which cannot train."""
    root = tmp_path_factory.mktemp("sweep")
    cases = {
        "quarter": {"imitation.patch_scale": 0.25},
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
    deadline = time.monotonic() + PATIENCE_S
    while not (ended := ended_trials("scales")):
        assert process.poll() is None and time.monotonic() < deadline, (root / "killed.log").read_text(
            encoding="utf-8"
        )
        time.sleep(0.2)
    process.kill()
    process.wait()
    run = mimic3d(*command, timeout=PATIENCE_S)
    said = (root / "killed.log").read_text(encoding="utf-8")
    return Swept(file, root / "report", ended, said, run, mimic3d(*command, timeout=PATIENCE_S))


def ended_trials(sweep: str) -> list[str]:
    return [trial.name for trial in records(sweep) if trial.ended]


def test_a_sweep_resumes_after_a_kill_and_continues_past_a_failed_trial(swept: Swept) -> None:
    assert swept.run.returncode == 0, swept.run.stderr
    trials = records("scales")
    assert [trial.status for trial in trials] == ["finished", "failed", "finished"]
    assert "diverged" in trials[1].error or "finite" in trials[1].error
    assert "trial 1 failed and is tried again: " in swept.said + swept.run.stdout
    # Ray itself warns of many processes on few CPUs.
    assert all("(raylet)" in line for line in swept.run.stderr.splitlines())
    # Trials that had ended when the driver was killed are not started again.
    started = re.findall(r"trial (\d+) starts", swept.run.stdout)
    assert not {f"scales-{int(index):03d}" for index in started} & set(swept.killed_with)


def test_all_trials_fork_from_one_stage1(swept: Swept) -> None:
    stage1 = json.loads(storage.read_bytes(f"{DEFAULT_RUNS_URI}/scales-stage1/result.json"))
    scales = []
    for trial in records("scales"):
        config = config_from_yaml(
            storage.read_bytes(f"{DEFAULT_RUNS_URI}/{trial.name}/config.yaml").decode(), trial.name
        )
        assert config.start == stage1["checkpoint_uri"] and config.stage1_nimg == 0
        if trial.status == "finished":
            scales.append(config.imitation.patch_scale)
            assert trial.nimg == config.total_nimg == 32
    assert scales == [0.25, 1]


def test_mlflow_holds_the_sweep_its_trials_and_their_stages(swept: Swept) -> None:
    parent = run_of("scales")
    assert parent.info.status == "FINISHED"
    children = {run.info.run_name: run for run in children_of(parent.info.run_id)}
    assert set(children) == {"scales-stage1", *(f"scales-{index:03d}" for index in range(3))}
    for trial in records("scales"):
        run = children[trial.name]
        assert run.info.status == ("FAILED" if trial.status == "failed" else "FINISHED")
        assert run.data.tags["mimic3d.trial_ended"] == trial.status
        assert [stage.info.run_name for stage in children_of(run.info.run_id)] == [f"{trial.name}-stage2"]
        if trial.status == "finished":
            assert trial.metrics.items() <= run.data.metrics.items()
        else:
            assert run.data.tags["mimic3d.diverged"] == "not finite"
            assert "generator_lr" in run.data.tags["mimic3d.diverged.why"]
    best = min(
        (t for t in records("scales") if t.status == "finished"),
        key=lambda t: t.metrics["fd_efficientnetlite2mid/3d"],
    )
    assert (
        parent.data.metrics["best/fd_efficientnetlite2mid/3d"] == best.metrics["fd_efficientnetlite2mid/3d"]
    )
    assert parent.data.metrics["best/trial"] == best.index


def test_the_report_is_in_a_folder_in_storage_and_in_mlflow(swept: Swept, tmp_path: Path) -> None:
    from PIL import Image

    names = {path.name for path in swept.report.iterdir()}
    assert {PAGE, TABLE, WINNER, "best.png", "parallel.png", "parameters.png"} <= names
    with Image.open(swept.report / "best.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 50
    page = (swept.report / PAGE).read_bytes()
    assert storage.read_bytes(f"{DEFAULT_RUNS_URI}/scales/report/{PAGE}") == page
    tracking.download_artifacts(run_of("scales").info.run_id, "report", tmp_path)
    assert (tmp_path / PAGE).read_bytes() == page


def test_the_winning_config_is_one_that_trains(swept: Swept) -> None:
    best = min(
        (t for t in records("scales") if t.status == "finished"),
        key=lambda t: t.metrics["fd_efficientnetlite2mid/3d"],
    )
    # Under the trial's own name it is the run that is there: not a key differs.
    told = mimic3d("train", swept.report / WINNER, "--name", best.name, "--workers", 1)
    assert told.returncode == 0, told.stderr
    assert "fd_efficientnetlite2mid/3d" in told.stdout


def test_a_finished_sweep_only_reports_again(swept: Swept) -> None:
    assert swept.again.returncode == 0, swept.again.stderr
    assert "starts" not in swept.again.stdout
    assert "3 trials, 2 at once with 1 workers each, 3 of them over already" in swept.again.stdout


def test_a_name_stands_for_one_sweep(swept: Swept) -> None:
    said = error_of(mimic3d("sweep", swept.file, "--set", "seed=4"))
    assert "exists with other settings (config.seed 0 -> 4)" in said and "--name" in said


def test_a_sweep_is_extended_in_its_budget_only(cars: str, tmp_path: Path) -> None:
    space = {"imitation.lpips_weight": {"uniform": [0.5, 1]}}

    def sweep(trials: int, *options: str, seed: int = 0) -> subprocess.CompletedProcess:
        search, budget = {"algorithm": "random", "seed": seed}, {"trials": trials}
        file = written(tmp_path, "more", cars, space=space, search=search, budget=budget)
        return mimic3d("sweep", file, "--report", tmp_path / "report", *options, timeout=PATIENCE_S)

    assert "there is no sweep more to extend" in error_of(sweep(1, "--extend"))
    assert sweep(1).returncode == 0
    [first] = records("more")
    assert "budget.trials 1 -> 2" in error_of(sweep(2))
    assert "not in search.seed 0 -> 1" in error_of(sweep(2, "--extend", seed=1))
    extended = sweep(2, "--extend")
    assert extended.returncode == 0 and "the sweep more is extended: budget.trials 1 -> 2" in extended.stdout
    assert records("more")[0] == first and len(records("more")) == 2
    assert "does not extend it" in error_of(sweep(1, "--extend"))


def test_a_sweep_that_cannot_run_is_refused_before_it_starts(cars: str, tmp_path: Path) -> None:
    keys = {"space": {"seed": {"grid": [0, 1]}}, "search": {"algorithm": "grid"}}
    for words, trials in {
        "4 workers needs as many CPUs": {"workers": 4},
        "9 trials of 1 workers": {"concurrency": 9},
    }.items():
        file = written(tmp_path, "greedy", cars, trials=trials, **keys)
        assert words in error_of(mimic3d("sweep", file))
    # Nor is anything trained for a metric that nothing measures, or from a stage 1 that is not there.
    for words, wrong in {
        "no run measures fid_x/3d": {"objectives": [{"metric": "fid_x/3d", "mode": "min"}]},
        "stage1: there is nothing at s3://mimic3d/nowhere": {"stage1": "s3://mimic3d/nowhere"},
    }.items():
        assert words in error_of(mimic3d("sweep", written(tmp_path, "greedy", cars, **keys, **wrong)))
    assert not storage.exists(f"{DEFAULT_RUNS_URI}/greedy/sweep.yaml")


def test_no_secret_is_in_mlflow_or_any_log(swept: Swept, own_home: Path) -> None:
    assert_no_secret_leaked(own_home, swept.said.encode(), swept.run.stdout.encode())
