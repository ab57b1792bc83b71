"""The demo's stage 2 is as long as its minutes allow, and stays so when the demo is run again."""

from pathlib import Path

import pytest

from mimic3d_platform.cli import demo_length
from mimic3d_platform.cli.demo_length import LENGTHS_KIMG, run_name, stage2_length
from mimic3d_platform.cluster.resources import WorkerPlan
from mimic3d_platform.console import Console
from mimic3d_platform.training.config_from_command import resolve_config
from mimic3d_platform.training.dry_run import StageCost, TrainingCost

DATA = "s3://bucket/data"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """Two workers, whose seconds for an image of stage 2 a test sets; runs lie in a folder."""
    speed = {"seconds": 1.0}

    def measured(*_: object) -> TrainingCost:
        return TrainingCost(0, (StageCost(1, 0.5, 1.0, 1), StageCost(2, speed["seconds"], 1.0, 1)))

    monkeypatch.setattr(demo_length, "measure_cost", measured)
    monkeypatch.setattr(demo_length, "imitation_distance", lambda *_: None)
    monkeypatch.setattr(demo_length, "join_ray", lambda: None)
    monkeypatch.setattr(demo_length, "plan_workers", lambda *_: WorkerPlan((2,), False, 1, 4))
    monkeypatch.setattr(demo_length, "DEFAULT_RUNS_URI", str(tmp_path))
    return speed


def length(*overrides: str) -> list[str]:
    return stage2_length(DATA, "hed-vgg16", overrides, Console())


@pytest.mark.parametrize(
    ("seconds", "kimg"), [(1.0, 0.32), (0.4, 0.96), (1e-3, LENGTHS_KIMG[-1]), (60.0, LENGTHS_KIMG[0])]
)
def test_the_longest_that_fits_is_taken(seconds: float, kimg: float, machine: dict[str, float]) -> None:
    machine["seconds"] = seconds
    assert length() == [f"schedule.stage2_kimg={kimg:g}", f"schedule.cooldown_kimg={kimg + 0.08:g}"]


def test_a_run_that_has_begun_keeps_its_length(machine: dict[str, float], tmp_path: Path) -> None:
    begun = length()
    folder = tmp_path / run_name(resolve_config("cars-continued", DATA, begun))
    folder.mkdir()
    (folder / "config.yaml").write_text("", encoding="utf-8")
    machine["seconds"] = 0.1
    assert length() == begun
    assert length("seed=1") != begun  # Another run.


def test_a_length_that_the_user_gives_is_left_alone() -> None:
    assert length("schedule.stage2_kimg=0.32") == []
