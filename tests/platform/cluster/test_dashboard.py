"""The address and token of the cluster that a command uses, and the job that it submits."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main

from mimic3d_platform.cli import app
from mimic3d_platform.cli.job_specs import (
    SweepOptions,
    TrainingOptions,
    command_job,
    sweep_job,
    training_job,
)
from mimic3d_platform.cluster.connect import Cluster, find_cluster
from mimic3d_platform.cluster.dashboard import Dashboard
from mimic3d_platform.cluster.jobs import JobSpec
from mimic3d_platform.cluster.resources import fewest_workers
from mimic3d_platform.errors import UserError
from mimic3d_platform.local.database import choose_database
from mimic3d_platform.local.state import Stack
from mimic3d_platform.settings import stack_file
from mimic3d_platform.tuning.sweep_file import load_sweep

ROOT = Path(__file__).parents[3]
URL = "http://127.0.0.1:21001"


@pytest.fixture(autouse=True)
def stack_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state files of `mimic3d up`, in an environment that names no other cluster."""
    for name in (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    ):
        monkeypatch.setenv(name, "")  # So that pytest restores it, also if the code sets it.
        monkeypatch.delenv(name)
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("the-stack-s-token\n", encoding="utf-8")
    stored = {"RAY_ADDRESS": "127.0.0.1:21000", "RAY_API_SERVER_ADDRESS": URL, "RAY_AUTH_MODE": "token"}
    stored["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    stack_file(tmp_path).parent.mkdir()
    stack_file(tmp_path).write_text(json.dumps(stored), encoding="utf-8")


def test_the_local_stack_and_its_token_are_the_default() -> None:
    found = find_cluster()
    assert (found.url, found.token) == (URL, "the-stack-s-token")
    assert "the-stack-s-token" not in repr(found)


@pytest.mark.parametrize("address", ["http://head:8265", "head:8265", "http://head:8265/"])
def test_the_stack_s_token_is_sent_to_no_other_cluster(address: str) -> None:
    assert find_cluster(address) == Cluster("http://head:8265", None, find_cluster(address).token_source)


def test_ray_s_variables_select_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    found = find_cluster()
    assert (found.url, found.token, found.headers) == (
        "http://head:8265",
        "secret",
        {"Authorization": "Bearer secret"},
    )
    assert find_cluster("other:8265").url == "http://other:8265"


def test_another_address_is_not_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with pytest.raises(UserError, match="no Ray cluster is named: give --address"):
        find_cluster()


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://", "http://head:port", "http://me:hunter2@head:8265"]
)
def test_an_invalid_address_is_one_line_without_its_password(address: str) -> None:
    with pytest.raises(UserError, match="give http://HEAD:8265") as caught:
        find_cluster(address)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_or_missing_token_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="is empty"):
        find_cluster()
    (tmp_path / "token").unlink()
    with pytest.raises(UserError, match="cannot read Ray's token from RAY_AUTH_TOKEN_PATH"):
        find_cluster()


def test_a_silent_head_is_reported_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimic3d_platform.cluster.dashboard.FIRST_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError, match=f"no Ray cluster answers at http://{place} .nothing within"):
            Dashboard(find_cluster(place))
        assert time.monotonic() - started < 60


# Jobs.


def spec(
    *overrides: str, name: str | None = None, workers: str | None = None, runs: str | None = None
) -> JobSpec:
    return training_job(TrainingOptions("cars-demo", "s3://mimic3d/x", overrides, name, workers, runs))


def test_the_job_of_a_run_does_not_depend_on_its_workers() -> None:
    assert spec(workers="2").id == spec(workers="1:4").id == spec().id
    others = [spec(name="b"), spec("seed=7"), spec(runs="s3://other/runs")]
    assert len({spec().id, *(other.id for other in others)}) == 4
    assert spec().id.startswith("train-cars-demo-")


def test_a_start_that_the_cluster_does_not_have_is_refused() -> None:
    length = "schedule.stage1_kimg=0"
    with pytest.raises(UserError, match="the start checkpoints/a is a relative path"):
        spec("start=checkpoints/a", length)
    for start in ("models:/cars/1", "builtin:cars-stage1", "s3://mimic3d/runs/a/checkpoints/b"):
        assert f"start: {start}" in spec(f"start={start}", length).files["config.yaml"]


def test_the_resolved_config_is_uploaded_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    sent = spec("imitation.lpips_weight=0.25", workers="2")
    assert "lpips_weight: 0.25" in sent.files["config.yaml"]
    assert sent.command == "python -m jobs.train config.yaml --name cars-demo --workers 2"
    assert "hunter2" not in repr(sent)


def test_the_resolved_sweep_is_uploaded_and_parses_to_the_same(tmp_path: Path) -> None:
    sent = sweep_job(SweepOptions(ROOT / "sweeps" / "imitation.yaml", "s3://mimic3d/x", ["seed=3"]))
    assert sent.command == "python -m jobs.sweep sweep.yaml --name imitation"
    (tmp_path / "sweep.yaml").write_text(sent.files["sweep.yaml"], encoding="utf-8")
    there = load_sweep(tmp_path / "sweep.yaml")
    assert there == load_sweep(ROOT / "sweeps" / "imitation.yaml", "s3://mimic3d/x", ["seed=3"])
    assert there.config["seed"] == 3 and there.config["data"]["uri"] == "s3://mimic3d/x"


@pytest.mark.parametrize("kind", ["train", "sweep", "data"])
def test_every_entry_point_is_a_command(kind: str) -> None:
    help_ = subprocess.run(
        [sys.executable, ROOT / "jobs" / f"{kind}.py", "--help"], capture_output=True, text=True, timeout=100
    )
    assert help_.returncode == 0 and "Usage: " in help_.stdout


def test_small_files_are_uploaded_folders_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = typer.main.get_command(app)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "note.yaml").write_text("a: 1\n", encoding="utf-8")
    sent = command_job(root, "data", ["inspect", "s3://mimic3d/x", "--sheet=deep/note.yaml"])
    assert sent.files == {"note.yaml": "a: 1\n"} and sent.arguments[-1] == "--sheet=note.yaml"
    for arguments, words in (
        (["render", "s3://mimic3d/x", "--meshes", "deep"], "deep is on this machine only"),
        (["rendr"], "no such command 'rendr'"),
        ([], "a subcommand is missing"),
    ):
        with pytest.raises(UserError, match=words):
            command_job(root, "data", arguments)


@pytest.mark.parametrize("workers", ["0", "3:2", "two", "1:2:3", "-1"])
def test_an_invalid_number_of_workers_is_refused(workers: str) -> None:
    assert (fewest_workers("4"), fewest_workers("2:8"), fewest_workers(None)) == (4, 2, 1)
    with pytest.raises(UserError, match=f"--workers {workers}"):
        fewest_workers(workers)


# MLflow's database.


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://mlflow:hunter2@host/mlflow", "holds a password"),
        ("mysql://mlflow@host/mlflow", "give postgresql://"),
        ("postgresql://mlflow@host", "give postgresql://"),
        ("postgresql://mlflow@127.0.0.1:9/mlflow", "refuses the connection"),
    ],
)
def test_an_unusable_database_is_one_line(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        choose_database(Stack(tmp_path), url)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    assert (
        choose_database(Stack(tmp_path), "sqlite") == choose_database(Stack(tmp_path), None) == (None, False)
    )
