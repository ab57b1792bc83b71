"""`mimic3d up --login`: MLflow asks for a login, and the commands have it."""

import json
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mimic3d_command import mimic3d
from mimic3d_platform import local
from mimic3d_platform.errors import UserError
from mimic3d_platform.local import login, services
from mimic3d_platform.local.state import Service, Stack, credentials
from mimic3d_platform.tracking.server import check_tracking


@pytest.fixture
def stack_of_mine(tmp_path: Path) -> Stack:
    stack = Stack(tmp_path)
    (stack.folder / "mlflow").mkdir(parents=True)
    stack.services["s3"] = Service({"s3": 1})
    return stack


def test_the_choice_is_kept_until_another_is_made(stack_of_mine: Stack) -> None:
    assert login.choose_login(stack_of_mine, None) == (False, False)
    assert login.choose_login(stack_of_mine, True) == (True, True)
    login.write_login(stack_of_mine, True)
    assert login.choose_login(stack_of_mine, None) == (True, False)
    assert login.choose_login(stack_of_mine, False) == (False, True)
    login.write_login(stack_of_mine, False)
    assert login.choose_login(stack_of_mine, None) == (False, False)


def test_the_password_is_in_private_places_alone(stack_of_mine: Stack) -> None:
    secrets = credentials(stack_of_mine)
    password = secrets["MLFLOW_TRACKING_PASSWORD"]
    launch = services.Tracking(login=True).launch(stack_of_mine, {"mlflow": 2}, secrets)
    assert launch.variables["MLFLOW_AUTH_ADMIN_PASSWORD"] == password and len(password) >= 12
    assert password not in " ".join(launch.command) and "basic-auth" in launch.command
    assert all(path.stat().st_mode & 0o077 == 0 for path in stack_of_mine.folder.rglob("*.ini"))
    open_launch = services.Tracking().launch(stack_of_mine, {"mlflow": 2}, secrets)
    assert "basic-auth" not in open_launch.command
    assert not [name for name in open_launch.variables if name.startswith("MLFLOW_AUTH")]


def test_secrets_of_an_older_stack_stay(stack_of_mine: Stack) -> None:
    former = {"AWS_ACCESS_KEY_ID": "old", "AWS_SECRET_ACCESS_KEY": "kept"}
    (stack_of_mine.folder / "credentials.json").write_text(json.dumps(former), encoding="utf-8")
    found = credentials(stack_of_mine)
    assert found.items() >= former.items() and found["MLFLOW_TRACKING_PASSWORD"]
    assert credentials(stack_of_mine) == found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mlflow_lets_in_who_has_the_login_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # So that what the client sets is removed after the test.
        monkeypatch.delenv(name)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(prefix="m3d-", dir="/tmp", ignore_cleanup_errors=True) as home:
        monkeypatch.setenv("MIMIC3D_HOME", home)
        try:
            url = local.up(cpus=1, login=True).services["mlflow"].url
            assert check_tracking() == url
            search = urllib.request.Request(f"{url}/api/2.0/mlflow/experiments/search?max_results=1")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(search, timeout=30)
            assert refused.value.code == 401
            found = json.loads(mimic3d("env", "--format", "json").stdout)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", found["MLFLOW_TRACKING_USERNAME"])
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-wrong-wrong")
            with pytest.raises(UserError, match="refuses access"):
                check_tracking()
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", found["MLFLOW_TRACKING_PASSWORD"])
            check_tracking()
        finally:
            local.down()
