"""The doctor checks every part within ten seconds, and names a remedy for each that is not usable."""

import re
import subprocess
import time
from pathlib import Path

import pytest
import typer.main

from mimic3d_platform.cli import app, doctor
from mimic3d_platform.cli.job_specs import check_arguments

PARTS = {"Python", "torch", "GPU", "Ray", "S3", "MLflow", "disk", "memory", "embreex", "ffmpeg"}


def diagnosis() -> dict[str, doctor.Finding]:
    began = time.monotonic()
    found = {finding.name: finding for finding in doctor.diagnose()}
    assert time.monotonic() - began < 10.0
    return found


def test_with_a_stack_its_services_are_usable(stack) -> None:
    found = diagnosis()
    assert found.keys() >= PARTS and any(name.startswith("weights") for name in found)
    for name in ("Python", "torch", "Ray", "S3", "MLflow", "embreex", "ffmpeg"):
        assert found[name].state == "ok", found[name]
    assert "mimic3d" in found["S3"].detail


def test_without_services_each_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path))
    for name in ("Ray", "S3", "MLflow"):
        finding = diagnosis()[name]
        assert finding.state == "warn" and "mimic3d up" in finding.remedy


def test_dead_services_are_missing_and_no_secret_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    found = diagnosis()
    for name in ("Ray", "S3", "MLflow"):
        assert found[name].state == "missing" and found[name].remedy
        assert "\n" not in found[name].detail
    assert "the-secret" not in str(found)


def test_a_check_that_fails_or_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[doctor.Finding]:
        raise RuntimeError("two\nlines")

    def hang() -> list[doctor.Finding]:
        time.sleep(30)
        return []

    monkeypatch.setattr(doctor, "CHECK_PATIENCE_S", 0.5)
    monkeypatch.setattr(doctor, "_CHECKS", {"Ray": fail, "S3": hang})
    failed, hung = doctor.diagnose()
    assert failed == doctor.Finding("Ray", "missing", "two lines", failed.remedy) and failed.remedy
    assert hung.state == "warn" and "no answer within" in hung.detail
    # Nothing says that the part is broken: nobody is sent to install it again.
    assert "busy" in hung.remedy and "make setup" not in hung.remedy


def test_a_program_that_answers_late_is_not_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def late() -> list[doctor.Finding]:
        raise subprocess.TimeoutExpired("ffmpeg", 3)

    monkeypatch.setattr(doctor, "_CHECKS", {"ffmpeg": late})
    [finding] = doctor.diagnose()
    assert finding.state == "warn" and "busy" in finding.remedy


def test_a_remedy_for_feature_weights_fetches_something() -> None:
    found = [finding for finding in doctor.diagnose() if finding.name.startswith("weights")]
    group = typer.main.get_command(app)
    for remedy in [*(finding.remedy for finding in found if finding.remedy), doctor._REMEDIES["weights"]]:
        named = re.search(r"`mimic3d weights ([^`]*)`", remedy)
        assert named and (named[1] == "--fetch" or named[1] in remedy), remedy
        check_arguments(group, ["weights", *named[1].split()])
