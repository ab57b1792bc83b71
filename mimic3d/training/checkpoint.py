"""A training checkpoint as a folder: the trainer's state, the averaged generator, and what was measured."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from mimic3d.checkpoints.file_names import GENERATOR_FOLDER, PROGRESS, TRAINING_STATE
from mimic3d.checkpoints.generator_folder import save_weights
from mimic3d.config import Config, fingerprint
from mimic3d.training.trainer import Trainer


@dataclass
class Progress:
    """The position of a run and the metrics measured so far."""

    nimg: int = 0
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """By images consumed, the metrics of both branches."""
    seconds: float = 0.0
    """Spent in training steps, over all attempts that led here."""


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment: copies in CPU memory, which later steps do not change."""

    config: Config
    state: dict[str, Any]
    progress: Progress

    def write(self, folder: str | Path) -> Path:
        """Writes all that a later process needs to resume from here, and the averaged generator's folder.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(self.state, folder / TRAINING_STATE)
        except RuntimeError as error:  # PyTorch's zip writer hides a full disk behind its own error.
            raise OSError(f"cannot write {folder / TRAINING_STATE}: {str(error).splitlines()[0]}") from error
        save_weights(folder / GENERATOR_FOLDER, self.state["ema"], self.config)
        values = asdict(self.progress) | {"config": fingerprint(self.config)}
        (folder / PROGRESS).write_text(json.dumps(values, indent=1), encoding="utf-8")
        return folder

    def not_finite(self) -> str | None:
        """The name of a weight that is NaN or infinite, or None. Training does not recover from one."""
        for part in ("generator", "ema", "dual", "patch"):
            for name, tensor in self.state[part].items():
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    return f"{part}.{name}"
        return None


def take_snapshot(trainer: Trainer, progress: Progress) -> Snapshot:
    """Copies the run as it is now; training may continue while the copy is written."""
    now = Progress(trainer.nimg, dict(progress.metrics), progress.seconds)
    return Snapshot(trainer.config, _copied(trainer.state_dict()), now)


def save_checkpoint(folder: str | Path, trainer: Trainer, progress: Progress) -> Path:
    """`take_snapshot` and `Snapshot.write` in one."""
    return take_snapshot(trainer, progress).write(folder)


def load_checkpoint(folder: str | Path, trainer: Trainer, former_configs: Collection[str] = ()) -> Progress:
    """Puts `trainer` in the state that `save_checkpoint` stored. Nothing in the folder is executed.

    Args:
        former_configs: fingerprints of other configs whose checkpoints are accepted, such as shorter ones.
    Raises:
        ValueError: a file is missing or damaged, or the checkpoint is of another config.
    """
    folder = Path(folder)
    damaged = (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError)
    try:
        values = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        config = values["config"]
        metrics = {int(nimg): found for nimg, found in values["metrics"].items()}
        progress = Progress(values["nimg"], metrics, values["seconds"])
        state = torch.load(folder / TRAINING_STATE, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"{TRAINING_STATE} holds no state of a training")
    except (*damaged, AttributeError) as error:
        raise _damaged(folder, error) from None
    if config != fingerprint(trainer.config) and config not in former_configs:
        raise ValueError(f"the checkpoint {folder} is of another config: give the run another name")
    try:
        trainer.load_state_dict(state)
    except damaged as error:
        raise _damaged(folder, error) from None
    return progress


def _damaged(folder: Path, error: Exception) -> ValueError:
    reason = f"no {error}" if isinstance(error, KeyError) else (str(error).splitlines() or ["no reason"])[0]
    return ValueError(f"the checkpoint {folder} is damaged ({reason}): take an earlier one")


def _copied(value: Any) -> Any:
    """A tree of dicts, lists and tuples with every tensor in it copied to CPU memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    return value
