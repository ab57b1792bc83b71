"""Jobs on a Ray cluster of three nodes with token authentication, and MLflow on PostgreSQL.

The installed command submits, follows, leaves, finds and stops them, and refuses invalid ones in one line.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg2
import pytest
import trimesh

from mimic3d_command import error_of, mimic3d, start_mimic3d
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.local.state import Stack
from mimic3d_platform.settings import stack_file
from postgresql_server import Server, postgresql_server
from stack_processes import alive, stack_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[3]
# The README's commands for a cluster.
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.search(r"^## Submit to a cluster\n.*?^```sh\n(.*?)^```", README, re.M | re.S)
UP, TRAIN, *FIND = [shlex.split(line)[1:] for line in BLOCK[1].splitlines()]
DATA, NAME = (TRAIN[TRAIN.index(option) + 1] for option in ("--data", "--name"))
OVERRIDES = {
    "schedule.batch": 4,
    "schedule.stage1_kimg": 0.008,
    "schedule.stage2_kimg": 0.008,
    "output.checkpoint_kimg": 0.008,
    "output.sample_kimg": 0.008,
    "output.log_steps": 1,
    "output.metric_images": 4,
    "output.metric_identities": 1,
}
SETTINGS = [part for key, value in OVERRIDES.items() for part in ("--set", f"{key}={value}")]
LONG = ["--set", "schedule.stage1_kimg=80"]
# On an idle machine none of these waits takes longer than a minute.
PATIENCE_S = 900


@dataclass(frozen=True)
class Cluster:
    """This module's own stack and the environment in which the command finds it."""

    home: Path
    url: str
    """Of the dashboard."""
    token: str
    database: Server
    environment: dict[str, str | None]

    def run(self, *arguments: object, **changes: str | None) -> subprocess.CompletedProcess:
        return mimic3d(*arguments, timeout=PATIENCE_S, **{**self.environment, **changes})

    def jobs(self) -> list[dict]:
        """The dashboard's list of jobs, as a holder of the token gets it."""
        request = urllib.request.Request(
            f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def cluster(own_home: Path) -> Iterator[Cluster]:
    ours = ("AWS_", "MLFLOW_", "RAY_A")
    environment: dict[str, str | None] = {name: None for name in os.environ if name.startswith(ours)}
    home = Path(tempfile.mkdtemp(prefix="m3d-", dir="/tmp"))
    environment["MIMIC3D_HOME"] = str(home)
    if "MIMIC3D_WEIGHTS" not in os.environ:  # Staged once a session, as for a cluster without internet.
        for purpose in ("perceptual", "frechet"):
            feature_weights.best_available(purpose)
        environment["MIMIC3D_WEIGHTS"] = str(own_home / "weights")
    with postgresql_server() as database:
        try:
            arguments = (*UP, "--mlflow-database", database.url)
            up = mimic3d(*arguments, timeout=PATIENCE_S, **environment, PGPASSWORD=database.password)
            assert up.returncode == 0, up.stderr
            stored = json.loads(stack_file(home).read_text(encoding="utf-8"))
            token = Path(stored["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8").strip()
            yield Cluster(home, stored["RAY_API_SERVER_ADDRESS"], token, database, environment)
        finally:
            processes = stack_processes(home)
            down = mimic3d("down", **environment)
            left = [process.cmdline() for process in [*alive(processes), *stack_processes(home)]]
            shutil.rmtree(home, ignore_errors=True)
    assert down.returncode == 0 and not left


@pytest.fixture(scope="module")
def rendered(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess:
    """The trainings' data set, rendered by a job."""
    meshes = tmp_path_factory.mktemp("meshes")
    box = trimesh.creation.box((1.0, 0.4, 0.5))
    box.visual.face_colors = [200, 60, 40, 255]
    box.export(meshes / "box.ply")
    sizes = ("--resolution", 32, "--colourings", 2, "--views", 8, "--supersample", 1)
    return cluster.run("submit", "data", "render", DATA, "--meshes", meshes, *sizes)


@pytest.fixture(scope="module")
def trained(cluster: Cluster, rendered: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    return cluster.run(*TRAIN, *SETTINGS)


def test_status_shows_three_nodes(cluster: Cluster) -> None:
    status = cluster.run("status")
    assert status.returncode == 0
    assert [name in status.stdout for name in ("Ray node 2", "Ray node 3", "Ray node 4")] == [
        True,
        True,
        False,
    ]


def test_a_job_renders_a_data_set(rendered: subprocess.CompletedProcess) -> None:
    assert rendered.returncode == 0, rendered.stdout + rendered.stderr
    assert f"{DATA}: 16 images of 2 identities" in rendered.stdout and not rendered.stderr


def test_a_training_job_is_followed_to_its_end_and_listed(
    cluster: Cluster, trained: subprocess.CompletedProcess
) -> None:
    assert trained.returncode == 0, trained.stdout + trained.stderr
    lines = trained.stdout.splitlines()
    job = lines[0].split()[1].rstrip(":")
    assert job.startswith(f"train-{NAME}-") and f"submitted to {cluster.url}" in lines[0]
    assert [line for line in lines if line.startswith("MLflow: http://127.0.0.1:") and "/runs/" in line]
    assert lines[-1] == f"job {job}: SUCCEEDED" and "metric" in trained.stdout
    listed, logs = (cluster.run(*arguments) for arguments in FIND)
    assert any(NAME in line and "SUCCEEDED" in line for line in listed.stdout.splitlines())
    assert logs.returncode == 0 and logs.stdout.splitlines()[-1] in trained.stdout


def test_mlflow_stores_runs_in_postgresql(cluster: Cluster, trained: subprocess.CompletedProcess) -> None:
    connection = psycopg2.connect(cluster.database.url, password=cluster.database.password)
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT status FROM runs WHERE name = %s", (NAME,))
        assert cursor.fetchall() == [("FINISHED",)]
        cursor.execute("SELECT count(*) FROM metrics")
        assert cursor.fetchone()[0] > 10
    assert not (cluster.home / "stack" / "mlflow" / "mlflow.db").exists()


def test_the_job_of_a_run_can_be_left_listed_and_stopped(
    cluster: Cluster, rendered: subprocess.CompletedProcess, tmp_path: Path
) -> None:
    arguments = [*TRAIN, *SETTINGS, "--name", "long", *LONG]
    log = tmp_path / "log"
    first = start_mimic3d(*arguments, log=log, **cluster.environment)
    try:
        wait_for(lambda: "MLflow: " in log.read_text(encoding="utf-8") or first.poll() is not None)
        assert first.poll() is None, log.read_text(encoding="utf-8")
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=PATIENCE_S) == 130
    finally:
        first.kill()
        first.wait()
    said = log.read_text(encoding="utf-8")
    assert "detached" in said and "keeps running" in said and "Traceback" not in said
    again = cluster.run(*arguments, "--detach")
    assert again.returncode == 0 and "runs already at" in again.stdout
    mine = [job for job in cluster.jobs() if "train-long-" in (job["submission_id"] or "")]
    assert [job["status"] for job in mine] == ["RUNNING"]
    stopped = cluster.run("jobs", "stop", "long")
    assert stopped.returncode == 0 and stopped.stdout.split()[-1] == "STOPPED"
    logs = cluster.run("jobs", "logs", "long", "--follow")
    assert "stopped; run the same command again" in logs.stdout and logs.returncode != 0
    assert "Traceback" not in logs.stdout
    third = cluster.run(*arguments, "--detach")
    assert f"{mine[0]['submission_id']}-2: submitted" in third.stdout
    assert cluster.run("jobs", "stop", "long").returncode == 0


def test_ray_s_own_submission_runs_the_same_entry_point(
    cluster: Cluster, rendered: subprocess.CompletedProcess
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in cluster.environment}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
    submit = ["job", "submit", "--address", cluster.url, "--", "python", "-m", "jobs.data", "inspect", DATA]
    program = Path(sys.executable).with_name("ray")
    run = subprocess.run([program, *submit], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and '"identities": 2' in run.stdout, run.stdout + run.stderr


def test_tracked_sources_are_uploaded_on_request(
    cluster: Cluster, rendered: subprocess.CompletedProcess, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, checkout], check=True)
    entry = checkout / "jobs" / "data.py"
    marked = "from pathlib import Path; print('sent:', sorted(p.name for p in Path('jobs').iterdir()))\n"
    text = entry.read_text(encoding="utf-8")
    text = text.replace('if __name__ == "__main__":', f"{marked}\nif __name__ == '__main__':")
    entry.write_text(text, encoding="utf-8")
    (checkout / "jobs" / "notes.txt").write_text("untracked", encoding="utf-8")
    paths = os.pathsep.join([str(checkout), str(checkout / "platform")])
    run = cluster.run("submit", "data", "inspect", DATA, "--with-code", PYTHONPATH=paths)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "sent: [" in run.stdout and "'data.py'" in run.stdout and "notes.txt" not in run.stdout


def test_no_secret_is_in_dashboard_logs_or_arguments(
    cluster: Cluster, trained: subprocess.CompletedProcess
) -> None:
    credentials = (cluster.home / "stack" / "credentials.json").read_text(encoding="utf-8")
    secrets = set(json.loads(credentials).values())
    secrets.add(cluster.database.password)
    texts = [json.dumps(cluster.jobs()), cluster.run("jobs", "list").stdout, trained.stdout]
    texts += [" ".join(process.cmdline()) for process in alive(stack_processes(cluster.home))]
    logs = (cluster.home / "stack" / "logs").iterdir()
    texts += [log.read_text(encoding="utf-8", errors="replace") for log in logs]
    runtime = Stack.load(cluster.home).runtime
    assert runtime
    logs = [log for log in (runtime / "ray").glob("session_2*/logs/**/*") if log.is_file()]
    assert len(logs) > 10
    texts += [log.read_text(encoding="utf-8", errors="replace") for log in logs]
    assert not [secret for secret in secrets if any(secret in text for text in texts)]
    assert (cluster.home / "stack" / "mlflow" / "pgpass").stat().st_mode & 0o777 == 0o600


REFUSED = {
    "no token": ("--address {url}", {"MIMIC3D_HOME": "{none}"}, "wants a token", "RAY_AUTH_TOKEN"),
    "wrong token": ("", {"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token of RAY_AUTH_TOKEN"),
    "unreachable": ("--address http://127.0.0.1:9", {}, "no Ray cluster answers at http://127.0.0.1:9"),
    "no dashboard": ("--address {s3}", {"RAY_AUTH_TOKEN": "x"}, "{s3}", "no Ray dashboard"),
    "too small": ("--workers 7", {}, "7 workers need as many CPUs", "has 3", "no GPU"),
    "a path of this machine": ("--data cars", {}, "the data set cars", "s3://"),
    "a key of no config": ("--set schedule.bach=4", {}, "schedule.bach", "did you mean"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_job_is_one_line_before_anything_starts(
    cluster: Cluster, case: str, tmp_path: Path
) -> None:
    line, changes, *words = REFUSED[case]
    s3 = json.loads(stack_file(cluster.home).read_text(encoding="utf-8"))["AWS_ENDPOINT_URL"]
    places = {"url": cluster.url, "s3": s3, "none": str(tmp_path)}
    before = len(cluster.jobs())
    arguments = ["submit", "train", "cars-demo", "--name", "never", *line.format(**places).split()]
    if "--data" not in arguments:
        arguments += ["--data", DATA]
    run = cluster.run(*arguments, **{name: value.format(**places) for name, value in changes.items()})
    said = error_of(run)
    assert all(word.format(**places) in said for word in words), said
    assert cluster.token not in said and len(cluster.jobs()) == before


def test_a_killed_node_is_shown_as_down_and_started_again(cluster: Cluster) -> None:
    node = psutil.Process(Stack.load(cluster.home).services["ray-3"].leader.pid)
    raylet = next(child for child in node.children(recursive=True) if child.name() == "raylet")
    family = [node, *node.children(recursive=True)]
    raylet.kill()
    wait_for(lambda: cluster.run("status").returncode == 1)
    rows = [row for row in cluster.run("status").stdout.splitlines() if "Ray" in row]
    assert ["DOWN" in row for row in rows] == [False, False, True], rows
    up = cluster.run("up", "--cpus", 1)
    assert up.returncode == 0 and "Ray node 3: ready" in up.stdout, up.stderr
    assert not alive(family)
    assert cluster.run("status").returncode == 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.3)
