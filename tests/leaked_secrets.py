"""Checks that no secret of the stack is where others can read it."""

import os
from pathlib import Path

from mimic3d_platform.local.state import Stack
from mimic3d_platform.settings import get_settings
from mimic3d_platform.tracking.server import client


def assert_no_secret_leaked(home: Path, *output: bytes) -> None:
    """Asserts that no storage key or token is in MLflow, in `output`, or in a file of the stack at `home`.

    Exceptions are the private files that hold them: below `stack/`, no logs, not readable by others.
    """
    settings = get_settings()
    assert settings.aws_secret_access_key is not None and settings.ray_auth_token_path is not None
    secrets = (
        settings.aws_secret_access_key.get_secret_value().encode(),
        settings.ray_auth_token_path.read_text(encoding="utf-8").strip().encode(),
    )
    server = client()
    experiments = [experiment.experiment_id for experiment in server.search_experiments()]
    found = server.search_runs(experiments, max_results=1000)
    told = [repr([(run.data.params, run.data.tags) for run in found]).encode(), *output]
    assert found and not any(secret in text for secret in secrets for text in told)
    for root in (home, Stack.load(home).runtime):
        for path in (path for path in root.rglob("*") if path.is_file()):
            content = path.read_bytes()
            if any(secret in content for secret in secrets):
                assert path.suffix != ".log" and "logs" not in path.parts, path
                assert path.stat().st_mode & 0o077 == 0, f"{path} holds a secret, and others may read it"
                assert os.path.commonpath([path, home / "stack"]) == str(home / "stack"), path
