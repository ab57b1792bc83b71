"""Extending a run: what is accepted, recorded and said."""

from pathlib import Path

import pytest

from mimic3d.config import Config, config_from_yaml, fingerprint, override
from mimic3d.config.recipes import get_recipe
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.extension import extend_run, read_extensions
from mimic3d_platform.training.result import TrainingResult, read_result, write_result
from mimic3d_platform.training.run_identity import RunOrigin, claim_run


@pytest.fixture
def runs(tmp_path: Path) -> str:
    return str(tmp_path / "runs")


def config_of(**changes: str) -> Config:
    return override(
        get_recipe("cars-demo"), {key.replace("__", "."): value for key, value in changes.items()}
    )


def stored_config(runs: str, name: str) -> Config:
    place = f"{runs}/{name}/config.yaml"
    return config_from_yaml(storage.read_bytes(place).decode(), place)


def test_a_finished_run_gets_the_longer_config_and_loses_its_result(runs: str) -> None:
    short, long = config_of(), config_of(schedule__stage2_kimg="8")
    claim_run(runs, "a", short, RunOrigin("data"))
    write_result(runs, TrainingResult("a", "1", "checkpoints/4000", {}, 1.0))
    line = extend_run(runs, "a", long)
    # cars-demo cools down over all of its stage 2.
    assert line is not None and line.startswith("the run a is extended from 4 to 8.8 kimg; up to 3.2 kimg")
    assert stored_config(runs, "a") == long and read_result(runs, "a") is None
    [extension] = read_extensions(runs, "a")
    assert (extension.config, extension.kimg, extension.to_kimg) == (fingerprint(short), 4.0, 8.8)
    assert extend_run(runs, "a", long) is None
    assert claim_run(runs, "a", long, RunOrigin("data"))


def test_without_a_cooldown_the_result_is_that_of_one_longer_run(runs: str) -> None:
    claim_run(runs, "a", config_of(schedule__cooldown_kimg="0"), RunOrigin("data"))
    line = extend_run(runs, "a", config_of(schedule__cooldown_kimg="0", schedule__stage2_kimg="8"))
    assert line == "the run a is extended from 4 to 8.8 kimg"


def test_a_run_of_stage_1_gets_more_of_it_or_a_stage_2(runs: str) -> None:
    only_stage1 = {"schedule__stage2_kimg": "0", "schedule__cooldown_kimg": "0"}
    claim_run(runs, "a", config_of(**only_stage1), RunOrigin("data"))
    extend_run(runs, "a", config_of(**only_stage1 | {"schedule__stage1_kimg": "1.6"}))
    extend_run(
        runs, "a", config_of(**only_stage1 | {"schedule__stage1_kimg": "1.6", "schedule__stage2_kimg": "4"})
    )
    assert [(each.kimg, each.to_kimg) for each in read_extensions(runs, "a")] == [(0.8, 1.6), (1.6, 5.6)]


def test_eg3d_which_has_no_stage_2_gets_more_of_stage_1(runs: str) -> None:
    recipe = get_recipe("cars-demo-eg3d")
    claim_run(runs, "a", recipe, RunOrigin("data"))
    with pytest.raises(UserError, match=r"do not extend it: raise schedule\.stage1_kimg"):
        extend_run(runs, "a", override(recipe, {"schedule.stage2_kimg": 9.0}))
    extend_run(runs, "a", override(recipe, {"schedule.stage1_kimg": 8.0}))
    assert [(each.kimg, each.to_kimg) for each in read_extensions(runs, "a")] == [(4.0, 8.0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule__stage2_kimg": "2"}, "2.8 do not extend it: raise schedule.stage2_kimg"),
        ({"schedule__stage1_kimg": "2"}, "stage 1 of the run a is over: extend schedule.stage2_kimg"),
        ({"schedule__stage2_kimg": "8", "seed": "3"}, "not in seed 0 -> 3: give this one another --name"),
    ],
)
def test_other_changes_are_refused_and_change_nothing(
    runs: str, changes: dict[str, str], message: str
) -> None:
    claim_run(runs, "a", config_of(), RunOrigin("data"))
    with pytest.raises(UserError, match=message):
        extend_run(runs, "a", config_of(**changes))
    assert stored_config(runs, "a") == config_of() and read_extensions(runs, "a") == ()


def test_a_run_that_is_not_there_is_one_line(runs: str) -> None:
    with pytest.raises(UserError, match="there is no run a to extend"):
        extend_run(runs, "a", config_of())
