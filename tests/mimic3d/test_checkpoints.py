"""Folders of generators and of training runs: what is damaged or not ours is refused, nothing is executed."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_training import CONFIG, MeanAbsolute, advance, same

from mimic3d.checkpoints.generator_folder import load_generator, save_generator
from mimic3d.config import override
from mimic3d.networks.generator import build_generator
from mimic3d.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    trainer = Trainer(CONFIG, MeanAbsolute())
    advance(trainer, 1)
    return trainer


@pytest.fixture
def checkpoint(trainer: Trainer, tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint", trainer, Progress(trainer.nimg))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


class Attack:
    """A pickle that makes a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


def poison(checkpoint: Path) -> None:
    (checkpoint / "state.pt").write_bytes(pickle.dumps(Attack(checkpoint / "executed"), protocol=2))


def poison_archive(checkpoint: Path) -> None:
    torch.save({"nimg": Attack(checkpoint / "executed")}, checkpoint / "state.pt")
    assert zipfile.is_zipfile(checkpoint / "state.pt")


def alter_state(checkpoint: Path, change: Callable[[dict], object]) -> None:
    state = torch.load(checkpoint / "state.pt")
    change(state)
    torch.save(state, checkpoint / "state.pt")


DAMAGES = {
    "truncated state": lambda folder: truncate(folder / "state.pt"),
    "empty state": lambda folder: (folder / "state.pt").write_bytes(b""),
    "missing state": lambda folder: (folder / "state.pt").unlink(),
    "missing progress": lambda folder: (folder / "progress.json").unlink(),
    "truncated progress": lambda folder: truncate(folder / "progress.json"),
    "another progress": lambda folder: (folder / "progress.json").write_text("[]", encoding="utf-8"),
    "progress without config": lambda folder: (folder / "progress.json").write_text("{}", encoding="utf-8"),
    "malicious state": poison,
    "malicious archive": poison_archive,
    "state without a network": lambda folder: alter_state(folder, lambda state: state.pop("ema")),
    "state of other shapes": lambda folder: alter_state(
        folder, lambda state: state["generator"].update({"decoder.net.0.weight": torch.zeros(3)})
    ),
    "a tensor for a state": lambda folder: torch.save(torch.zeros(3), folder / "state.pt"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_line(damage: str, checkpoint: Path, trainer: Trainer) -> None:
    DAMAGES[damage](checkpoint)
    fresh = Trainer(CONFIG, MeanAbsolute())
    with pytest.raises(ValueError, match="is damaged") as caught:
        load_checkpoint(checkpoint, fresh)
    message = str(caught.value)
    assert str(checkpoint) in message and "\n" not in message and "take an earlier one" in message
    assert not (checkpoint / "executed").exists()


def test_a_checkpoint_of_another_config_is_refused(checkpoint: Path) -> None:
    other = Trainer(override(CONFIG, {"seed": 5}), MeanAbsolute())
    with pytest.raises(ValueError, match="is of another config: give the run another name"):
        load_checkpoint(checkpoint, other)
    assert other.nimg == 0


def test_an_intact_checkpoint_restores_everything(checkpoint: Path, trainer: Trainer) -> None:
    fresh = Trainer(CONFIG, MeanAbsolute())
    assert not same(fresh, trainer)
    assert load_checkpoint(checkpoint, fresh).nimg == trainer.nimg == 4
    assert same(fresh, trainer)


def test_a_checkpoint_includes_the_averaged_generator(checkpoint: Path, trainer: Trainer) -> None:
    generator, config = load_generator(checkpoint / "generator")
    assert config == CONFIG
    expected = trainer.ema.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in generator.state_dict().items())
    assert not generator.training and not any(p.requires_grad for p in generator.parameters())


def reconfigure(folder: Path) -> None:
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text.replace("w_dim: 8", "w_dim: 16"), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "holds no config.yaml"),
        (lambda folder: (folder / "generator.safetensors").unlink(), "holds no generator.safetensors"),
        (lambda folder: truncate(folder / "generator.safetensors"), "is damaged"),
        (
            lambda folder: (folder / "config.yaml").write_text("model: {w_dimm: 3}", encoding="utf-8"),
            "did you mean model.w_dim",
        ),
        (reconfigure, "does not fit config.yaml"),
    ],
)
def test_a_damaged_generator_is_one_line(
    damage: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = save_generator(tmp_path / "generator", build_generator(CONFIG), CONFIG)
    damage(folder)
    with pytest.raises(ValueError) as caught:
        load_generator(folder)
    assert reason in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_progress_can_be_read_by_other_programs(checkpoint: Path) -> None:
    values = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    assert values["nimg"] == 4 and values.keys() == {"nimg", "config", "metrics", "seconds"}
