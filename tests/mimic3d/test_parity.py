"""Our networks and training phases against numbers measured on the released implementations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import parity
import phase_parity
import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
REFERENCE = Path(os.environ.get("MIMIC3D_REFERENCE", ROOT.parent / "shared" / "reference"))
FIGURES = {reference["name"]: reference for reference in parity.read(parity.FIGURES)}
PHASES = phase_parity.read(phase_parity.FIGURES)
BOUND = 1e-4


def report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, parity.__file__, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_in_the_repository_is_reproduced(name: str) -> None:
    errors = parity.compare(FIGURES[name])
    assert errors.keys() == FIGURES[name]["measured"].keys()
    assert {entry: error for entry, error in errors.items() if not error <= BOUND} == {}


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no folder of references at {REFERENCE}")
def test_every_reference_in_the_folder_is_reproduced() -> None:
    run = report(REFERENCE, "--bound", str(BOUND))
    assert run.returncode == 0, run.stdout + run.stderr
    expected = 0
    for file in REFERENCE.glob("*.json"):
        if parity.is_of_phases(file):
            expected += sum(2 * len(case["phases"]) for case in phase_parity.read(file).values())
        else:
            expected += sum(len(reference["measured"]) for reference in parity.read(file))
    assert len(run.stdout.splitlines()) == expected + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PHASES)
def test_every_training_phase_is_the_released_one(name: str) -> None:
    rows = phase_parity.compare(PHASES[name])
    assert [row.phase for row in rows] == list(PHASES[name]["phases"])
    assert {row.phase: str(row) for row in rows if not row.worst <= phase_parity.BOUND} == {}


@pytest.mark.parametrize(
    ("name", "phase", "change"),
    [
        ("stage1_blur", "Dreg", {"blur_sigma": 2.0}),
        ("stage2_ada_colour", "Dreg", {"augment": None}),
        ("stage2_ada_colour", "D_patchreg", {"augment": 0.71}),
        ("stage2_ada_colour", "D_patchmain", {"swap": True}),
    ],
)
def test_another_phase_is_noticed(name: str, phase: str, change: dict) -> None:
    case = PHASES[name]
    altered = {"config": case["config"] | change, "phases": {phase: case["phases"][phase]}}
    [row] = phase_parity.compare(altered)
    assert row.loss > 5e-4 and row.gradient > 1e-3


def test_noise_strengths_are_judged_by_the_references_float32_noise() -> None:
    exact = {"a": 2.0, "b": 1.0, "c": None}
    rounded = {"a": 2.0 * (1 + 4e-4), "b": 1.0, "c": None}
    noise = 3 * 4e-4 / 3**0.5
    assert parity.noise_strength_error({"a": 2.0012, "b": 1.0, "c": None}, exact, rounded, 0.1) == 0
    off = parity.noise_strength_error({"a": 2.0, "b": 1.002, "c": None}, exact, rounded, 0.1)
    assert off == pytest.approx(0.002 / 1.002 - noise, rel=1e-3)
    assert parity.noise_strength_error({"c": 0.5}, {"c": None}, {"c": None}, 0.1) == float("inf")


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


def _entry(value: torch.Tensor) -> dict:
    flat = value.detach().reshape(-1).double()
    index = [(flat.numel() - 1) * k // 23 for k in range(24)]
    numbers = {"mean": flat.mean().item(), "std": flat.std().item(), "l2": flat.norm().item()}
    return {"shape": list(value.shape), **numbers, "value": flat[index].tolist()}


@pytest.fixture(scope="module")
def of_another_size() -> dict:
    """A file of the same form with networks of another size, its numbers measured on our own."""
    aware = FIGURES["mimic3d_256_tiny"]
    sizes = {"image_resolution": 128, "triplane_resolution": 8, "neural_rendering_resolution": 16}
    sizes |= {"channel_base": 128, "channel_max": 8, "aware3d_resolutions": [4, 8], "patch_scale": 0.25}
    sizes |= {"patch_corners_top_left": [[1, 2], [96, 5]], "superresolution": "SuperresolutionHybrid2X"}
    sizes |= {"depth_samples": 5, "importance_samples": 6, "box_warp": 1.3, "white_background": True}
    reference = {"name": "other", "salt": "other/", "config": aware["config"] | sizes}
    config = parity.config_of(reference)
    widths = (config.model.discriminator_channel_base, config.model.discriminator_channel_max)
    networks = {
        "G": parity.Generator(config.model, config.rendering),
        "D": parity.DualDiscriminator(128, *widths),
        "D_patch": parity.PatchDiscriminator(32, *widths),
    }
    reference["tensors"] = {
        name: {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
        for name, network in networks.items()
    }
    found = parity.measure(reference, torch.float64)
    reference["measured"] = {
        name: _entry(value.float()) if isinstance(value, torch.Tensor) else value
        for name, value in found.items()
    }
    return reference


@pytest.mark.slow
def test_a_reference_of_another_size_is_compared_in_every_entry(of_another_size, tmp_path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(of_another_size), encoding="utf-8")
    run = report(tmp_path, "--bound", "1e-3")
    assert run.returncode == 0, run.stdout + run.stderr
    rows = run.stdout.splitlines()
    assert len(rows) == len(of_another_size["measured"]) + 1
    assert any("grad_norm" in row for row in rows)


@pytest.mark.parametrize("entry", ["image", "plane_detail", "grad_norm"])
def test_a_number_that_is_off_is_noticed(of_another_size, entry) -> None:
    altered = json.loads(json.dumps(of_another_size["measured"]))
    if entry == "grad_norm":
        key = max((k for k, v in altered[entry].items() if v), key=altered[entry].get)
        altered[entry][key] *= 1.002
    else:
        altered[entry]["value"][11] += 0.002 * altered[entry]["l2"]
    found = parity.measure(of_another_size, torch.float64)
    errors = parity.errors(altered, found)
    assert [name for name, error in errors.items() if error > 1e-3] == [entry]


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
    (tmp_path / "broken.json").write_text(content, encoding="utf-8")
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
