"""Which cluster a command uses, which token it sends there, and what it submits."""

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
    """What `mimic3d up` leaves behind, and an environment that names nothing else."""
    for name in (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    ):
        monkeypatch.setenv(name, "")  # Restored afterwards, also where the code sets it.
        monkeypatch.delenv(name)
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("the-stack-s-token\n")
    stored = {"RAY_ADDRESS": "127.0.0.1:21000", "RAY_API_SERVER_ADDRESS": URL, "RAY_AUTH_MODE": "token"}
    stored["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    stack_file(tmp_path).parent.mkdir()
    stack_file(tmp_path).write_text(json.dumps(stored))


def test_without_an_address_it_is_the_stack_with_its_token() -> None:
    found = find_cluster()
    assert (found.url, found.token) == (URL, "the-stack-s-token")
    assert "the-stack-s-token" not in repr(found)


@pytest.mark.parametrize("address", ["http://head:8265", "head:8265", "http://head:8265/"])
def test_the_stack_s_token_goes_to_no_other_cluster(address: str) -> None:
    assert find_cluster(address) == Cluster("http://head:8265", None, find_cluster(address).token_source)


def test_ray_s_own_variables_name_a_cluster_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    found = find_cluster()
    assert (found.url, found.token, found.headers) == (
        "http://head:8265",
        "secret",
        {"Authorization": "Bearer secret"},
    )
    assert find_cluster("other:8265").url == "http://other:8265"


def test_a_cluster_of_another_address_is_not_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    with pytest.raises(UserError, match="no Ray cluster is named: give --address"):
        find_cluster()


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://", "http://head:port", "http://me:hunter2@head:8265"]
)
def test_what_is_no_dashboard_s_address_is_one_line_without_a_password(address: str) -> None:
    with pytest.raises(UserError, match="give http://HEAD:8265") as caught:
        find_cluster(address)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_token_file_that_is_empty_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        find_cluster()
    (tmp_path / "token").unlink()
    with pytest.raises(UserError, match="cannot read Ray's token from RAY_AUTH_TOKEN_PATH"):
        find_cluster()


def test_a_head_that_does_not_answer_is_told_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimic3d_platform.cluster.dashboard.FIRST_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError, match=f"no Ray cluster answers at http://{place} .nothing within"):
            Dashboard(find_cluster(place))
        assert time.monotonic() - started < 60


# What is submitted.


def spec(
    *overrides: str, name: str | None = None, workers: str | None = None, runs: str | None = None
) -> JobSpec:
    return training_job(TrainingOptions("cars-demo", "s3://mimic3d/x", overrides, name, workers, runs))


def test_the_same_run_is_the_same_job_however_many_workers_it_gets() -> None:
    assert spec(workers="2").id == spec(workers="1:4").id == spec().id
    others = [spec(name="b"), spec("seed=7"), spec(runs="s3://other/runs")]
    assert len({spec().id, *(other.id for other in others)}) == 4
    assert spec().id.startswith("train-cars-demo-")


def test_the_config_travels_resolved_and_the_command_names_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    sent = spec("imitation.lpips_weight=0.25", workers="2")
    assert "lpips_weight: 0.25" in sent.files["config.yaml"]
    assert sent.command == "python -m jobs.train config.yaml --name cars-demo --workers 2"
    assert "hunter2" not in repr(sent)


def test_a_sweep_travels_resolved_and_is_read_the_same_there(tmp_path: Path) -> None:
    sent = sweep_job(SweepOptions(ROOT / "sweeps" / "imitation.yaml", "s3://mimic3d/x", ["seed=3"]))
    assert sent.command == "python -m jobs.sweep sweep.yaml --name imitation"
    (tmp_path / "sweep.yaml").write_text(sent.files["sweep.yaml"])
    there = load_sweep(tmp_path / "sweep.yaml")
    assert there == load_sweep(ROOT / "sweeps" / "imitation.yaml", "s3://mimic3d/x", ["seed=3"])
    assert there.config["seed"] == 3 and there.config["data"]["uri"] == "s3://mimic3d/x"


@pytest.mark.parametrize("kind", ["train", "sweep", "data"])
def test_every_entry_point_is_a_command(kind: str) -> None:
    help_ = subprocess.run(
        [sys.executable, ROOT / "jobs" / f"{kind}.py", "--help"], capture_output=True, text=True, timeout=100
    )
    assert help_.returncode == 0 and "Usage: " in help_.stdout


def test_small_files_travel_and_folders_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = typer.main.get_command(app)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "note.yaml").write_text("a: 1\n")
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
def test_workers_of_no_number_are_refused(workers: str) -> None:
    assert (fewest_workers("4"), fewest_workers("2:8"), fewest_workers(None)) == (4, 2, 1)
    with pytest.raises(UserError, match=f"--workers {workers}"):
        fewest_workers(workers)


# The database behind MLflow.


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://mlflow:hunter2@host/mlflow", "holds a password"),
        ("mysql://mlflow@host/mlflow", "give postgresql://"),
        ("postgresql://mlflow@host", "give postgresql://"),
        ("postgresql://mlflow@127.0.0.1:9/mlflow", "refuses the connection"),
    ],
)
def test_a_database_that_cannot_be_is_one_line(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        choose_database(Stack(tmp_path), url)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    assert (
        choose_database(Stack(tmp_path), "sqlite") == choose_database(Stack(tmp_path), None) == (None, False)
    )
