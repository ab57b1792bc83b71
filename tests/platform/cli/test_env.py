"""`mimic3d env` gives every other program what it needs to use the services."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from mimic3d_command import COMMAND, error_of, mimic3d

# What a notebook does: boto3, MLflow and Ray, each as its own page tells.
_NOTEBOOK = """
import boto3, mlflow, ray
print([bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]])
print(len(mlflow.search_experiments()))
ray.init("auto", log_to_driver=False)
print(int(ray.cluster_resources()["CPU"]))
"""


def variables(stack) -> dict[str, str]:
    run = mimic3d("env", "--format", "json", **dict.fromkeys(_named()))
    assert run.returncode == 0 and not run.stderr, run.stderr
    return json.loads(run.stdout)


def _named() -> list[str]:
    return [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "RAY_"))]


def _without_services() -> dict[str, str]:
    """The environment of another user's shell: no service, and no state folder, is named in it."""
    return {k: v for k, v in os.environ.items() if k not in _named() and k != "MIMIC3D_HOME"}


def test_ordinary_clients_work_with_it(stack) -> None:
    environment = _without_services() | variables(stack)
    run = subprocess.run(
        [sys.executable, "-c", _NOTEBOOK], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    buckets, experiments, cpus = run.stdout.splitlines()[-3:]
    assert "'mimic3d'" in buckets and int(experiments) >= 1 and int(cpus) == 2


def test_a_shell_takes_it_and_rays_own_command_answers(stack) -> None:
    ray = shlex.quote(str(sys.executable).replace("python3", "ray").rpartition("/")[0] + "/ray")
    script = f'eval "$({COMMAND} env)" && timeout 60 {ray} status && timeout 60 {ray} job list'
    environment = _without_services() | {"MIMIC3D_HOME": os.environ["MIMIC3D_HOME"]}
    run = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=150)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0.0/2.0 CPU" in run.stdout


def test_all_forms_say_the_same(stack) -> None:
    found = variables(stack)
    assert {"AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"} <= found.keys()
    assert {"MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"} <= found.keys()
    lines = mimic3d("env", "--format", "dotenv").stdout.splitlines()
    assert dict(line.split("=", 1) for line in lines).items() >= {"RAY_ADDRESS": found["RAY_ADDRESS"]}.items()
    shell = mimic3d("env").stdout.splitlines()
    assert f"export RAY_ADDRESS={found['RAY_ADDRESS']}" in shell


@pytest.mark.parametrize("form", ["shell", "dotenv"])
def test_values_are_quoted_where_they_have_to_be(form: str, tmp_path) -> None:
    secret = 'it\'s a $HOME "quoted" #1'
    named = {**dict.fromkeys(_named()), "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": secret}
    run = mimic3d("env", "--format", form, **named, MIMIC3D_HOME=str(tmp_path))
    if form == "shell":
        shown = subprocess.run(
            ["sh", "-c", run.stdout + '\nprintf %s "$AWS_SECRET_ACCESS_KEY"'], capture_output=True, text=True
        ).stdout
    else:
        [line] = [line for line in run.stdout.splitlines() if line.startswith("AWS_SECRET")]
        shown = json.loads(line.partition("=")[2])
    assert shown == secret


def test_without_services_it_is_one_line(tmp_path) -> None:
    named = dict.fromkeys(_named())
    assert "mimic3d up" in error_of(mimic3d("env", **named, MIMIC3D_HOME=str(tmp_path)))
    assert "shell, dotenv, json" in error_of(mimic3d("env", "--format", "xml"))
