"""MLflow as the manifests run it: the image's command and login, PostgreSQL, secrets from files."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mimic3d_platform import tracking
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings
from postgresql_server import postgresql_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

IMAGES = Path(__file__).parents[2] / "infra" / "images"
LOGIN = "a login with 'quotes' & $signs"


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    folder = tmp_path_factory.mktemp("mlflow")
    dockerfile = (IMAGES / "mlflow.Dockerfile").read_text(encoding="utf-8")
    command = json.loads(re.search(r"^CMD (\[.*)", dockerfile, re.M | re.S)[1].replace("\\\n", ""))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = {"mlflow": f"{Path(sys.executable).parent}/mlflow", "0.0.0.0": "127.0.0.1", "5000": str(port)}
    here |= {"s3://mimic3d-artifacts/mlflow": str(folder / "artifacts"), "2": "1"}
    command = [here.get(part, part) for part in command]
    with postgresql_server() as database:
        place = database.url.partition("@")[2]
        login = (
            (IMAGES / "basic_auth.ini").read_text(encoding="utf-8").replace("postgresql:5432/mlflow", place)
        )
        assert place in login
        files = {"login": LOGIN, "password": database.password, "session": "x" * 48, "basic_auth.ini": login}
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment |= {
            "MLFLOW_AUTH_ADMIN_PASSWORD_FILE": str(folder / "login"),
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://mlflow@{place}",
            "MLFLOW_FLASK_SERVER_SECRET_KEY_FILE": str(folder / "session"),
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PGPASSWORD_FILE": str(folder / "password"),
        }
        with open(folder / "log", "w", encoding="utf-8") as log:
            server = subprocess.Popen(
                [IMAGES / "secrets-from-files.sh", *command],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            arguments = []
            if server.poll() is None:
                family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
                arguments = [" ".join(process.cmdline()) for process in family]
                for process in family:
                    process.kill()
            server.wait()
        said = (folder / "log").read_text(encoding="utf-8") + "".join(arguments)
        assert not [secret for secret in (LOGIN, database.password, "x" * 48) if secret in said]


def _wait(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 400
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.5)


@pytest.fixture
def credentials(mlflow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "mimic3d")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", LOGIN)


def test_a_run_is_stored_and_read_with_the_login(credentials: None) -> None:
    run = tracking.start_or_resume_run("mimic3d", "with-login", {"seed": 1})
    assert tracking.start_or_resume_run("mimic3d", "with-login", {"seed": 1}) == run
    tracking.finish_run(run)


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_missing_login_is_one_line(
    credentials: None, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    if password is None:
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    with pytest.raises(UserError, match="refuses access; check MLFLOW_TRACKING_USERNAME") as caught:
        tracking.check_tracking()
    assert "\n" not in str(caught.value)


def test_the_login_reaches_workers_and_is_in_no_output(credentials: None) -> None:
    settings = get_settings()
    assert settings.export()["MLFLOW_TRACKING_PASSWORD"] == LOGIN
    assert LOGIN not in repr(settings) and LOGIN not in str(settings.model_dump())
