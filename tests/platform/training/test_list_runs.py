"""Listings of the runs in a folder."""

from pathlib import Path

import pytest

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config.recipes import get_recipe
from mimic3d.config.yaml_text import config_to_yaml
from mimic3d_platform.training.list_runs import list_runs
from mimic3d_platform.training.run_identity import ORIGIN

WHOLE = config_to_yaml(get_recipe("cars-demo")).encode()


@pytest.mark.parametrize("damaged", [b"recipe: [1", b"recipe: no-such\nbatch_size: x", b"\xff\xfe", b"- 1"])
def test_a_damaged_config_is_listed_with_its_fault_beside_the_other_runs(
    damaged: bytes, tmp_path: Path
) -> None:
    for name, text in (("damaged", damaged), ("whole", WHOLE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ORIGIN).write_text("{}", encoding="utf-8")
        (tmp_path / name / CONFIG).write_bytes(text)
    broken, whole = list_runs(str(tmp_path))
    assert (whole.name, whole.recipe, whole.state) == ("whole", "cars-demo", "not finished")
    assert broken.name == "damaged" and str(tmp_path / "damaged" / CONFIG) in broken.state
