"""Our networks against numbers measured on the released implementations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import parity
import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
REFERENCE = Path(os.environ.get("MIMIC3D_REFERENCE", ROOT.parent / "shared" / "reference"))
FIGURES = {reference["name"]: reference for reference in parity.read(parity.FIGURES)}
BOUND = 1e-4


def report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, parity.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_in_the_repository_is_reproduced(name: str) -> None:
    errors = parity.compare(FIGURES[name])
    assert errors.keys() == FIGURES[name]["measured"].keys()
    assert {entry: error for entry, error in errors.items() if not error <= BOUND} == {}


@pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no folder of references at {REFERENCE}")
def test_every_reference_in_the_folder_is_reproduced() -> None:
    run = report(REFERENCE, "--bound", str(BOUND))
    assert run.returncode == 0, run.stdout + run.stderr
    expected = sum(
        len(reference["measured"]) for f in REFERENCE.glob("*.json") for reference in parity.read(f)
    )
    assert len(run.stdout.splitlines()) == expected + 1


def test_an_altered_network_is_noticed() -> None:
    reference = json.loads(json.dumps(FIGURES["eg3d_256_small"]))
    reference["config"]["box_warp"] = 1.02
    errors = parity.errors(reference["measured"], parity.measure(reference))
    assert errors["ws"] < BOUND < errors["image_raw"]


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert report(tmp_path / "absent").stderr == (
        f"error: there is no folder {tmp_path / 'absent'}: give that of the references (*.json)\n"
    )
    run = report(empty)
    assert run.returncode == 2 and run.stderr.startswith(f"error: {empty} holds no reference")


def _without(section: str) -> dict:
    return {key: value for key, value in FIGURES["eg3d_256_small"].items() if key != section}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ("3", "is no reference"),
        (json.dumps(_without("tensors")), "it has no 'tensors'"),
        (json.dumps(FIGURES["eg3d_256_small"] | {"config": {}}), "its config has no image_resolution"),
        (
            json.dumps(_without("measured") | {"measured": {"plane_middle": {}}}),
            "its entry plane_middle has no counterpart here",
        ),
    ],
)
def test_a_broken_reference_is_one_clear_line(
    content: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "broken.json").write_text(content)
    monkeypatch.setattr(sys, "argv", ["parity.py", str(tmp_path)])
    assert parity.main() == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {tmp_path / 'broken.json'}: ") and line.count("\n") == 1
    assert reason in line


def test_other_tensors_and_shapes_are_refused() -> None:
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(parity.BadReference, match="only the reference has extra"):
        parity.fill(layer, {"weight": [3, 2], "bias": [3], "extra": [1]}, "")
    with pytest.raises(parity.BadReference, match="only the network here has bias"):
        parity.fill(layer, {"weight": [3, 2]}, "")
    with pytest.raises(parity.BadReference, match="is \\[3, 3\\] in the reference, \\[3, 2\\] here"):
        parity.fill(layer, {"weight": [3, 3], "bias": [3]}, "")
