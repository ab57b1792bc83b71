"""A run's name stands for one config, data set and start; numbers of workers; the time that is left."""

from pathlib import Path

import pytest
import torch

from mimic3d.config import Config, ConfigError, override
from mimic3d.config.recipes import get_recipe
from mimic3d.config.shares import worker_counts
from mimic3d.training.accumulation import BatchParts
from mimic3d_platform.cluster.resources import parse_workers
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.run_identity import ORIGIN, SWEEP, RunOrigin, claim_run, read_origin

ORIGINAL = RunOrigin(data="d" * 64, start="", perceptual="lpips", frechet="mobilenetv2")


@pytest.fixture
def config() -> Config:
    return override(get_recipe("cars-demo"), {"data.uri": "s3://bucket/cars"})


def test_the_same_name_config_and_data_set_resume_the_run(config: Config, tmp_path: Path) -> None:
    assert claim_run(str(tmp_path), "a", config, ORIGINAL) is False
    assert claim_run(str(tmp_path), "a", config, ORIGINAL) is True
    assert read_origin(str(tmp_path), "a") == ORIGINAL
    assert read_origin(str(tmp_path), "b") is None


def test_another_config_or_data_set_is_refused_with_the_difference(config: Config, tmp_path: Path) -> None:
    claim_run(str(tmp_path), "a", config, ORIGINAL)
    with pytest.raises(UserError, match=r"another config \(imitation.lpips_weight 1.0 -> 0.5\).*--name"):
        claim_run(str(tmp_path), "a", override(config, {"imitation.lpips_weight": 0.5}), ORIGINAL)
    changed = RunOrigin("e" * 64, "", "lpips", "mobilenetv2")
    with pytest.raises(UserError, match=r"another data set at s3://bucket/cars .*dddd -> eeee"):
        claim_run(str(tmp_path), "a", config, changed)


def test_another_start_under_the_same_uri_is_refused(config: Config, tmp_path: Path) -> None:
    config = override(config, {"start": "s3://bucket/stage1"})
    claim_run(str(tmp_path), "a", config, RunOrigin("d" * 64, "1" * 64))
    with pytest.raises(UserError, match="another start at s3://bucket/stage1"):
        claim_run(str(tmp_path), "a", config, RunOrigin("d" * 64, "2" * 64))


def test_a_run_without_a_stored_origin_takes_the_present_one(config: Config, tmp_path: Path) -> None:
    claim_run(str(tmp_path), "a", config, ORIGINAL)
    (tmp_path / "a" / ORIGIN).unlink()
    assert claim_run(str(tmp_path), "a", config, ORIGINAL) is True
    assert read_origin(str(tmp_path), "a") == ORIGINAL


def test_the_name_of_a_sweep_is_refused_and_nothing_is_written(config: Config, tmp_path: Path) -> None:
    (tmp_path / "minutes").mkdir()
    (tmp_path / "minutes" / SWEEP).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="minutes is a sweep already"):
        claim_run(str(tmp_path), "minutes", config, ORIGINAL)
    assert [path.name for path in (tmp_path / "minutes").iterdir()] == [SWEEP]


def test_workers_are_a_number_or_a_range() -> None:
    assert parse_workers(None) is None and parse_workers("4") == 4 and parse_workers("2:8") == (2, 8)
    for text in ("two", "2:", "2:4:8", "-1", ""):
        with pytest.raises(UserError, match="write a number, or LEAST:MOST"):
            parse_workers(text)
    assert worker_counts(32, 8) == [1, 2, 4, 8]


def test_the_numbers_of_workers_offered_are_those_that_the_trainer_takes() -> None:
    for batch in (4, 6, 8, 24, 32):
        for parts in (1, 2, 4):
            offered = worker_counts(batch, 16, parts)
            for workers in range(1, 17):
                if batch % workers == 0:
                    taken = True
                    try:
                        BatchParts(batch, 0, workers, parts, torch.device("cpu"))
                    except ConfigError:
                        taken = False
                    assert taken == (workers in offered), (batch, parts, workers)
