"""A training checkpoint as a folder: the trainer's state, the averaged generator, and what was measured."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mimic3d.checkpoints.folder import save_generator
from mimic3d.config import fingerprint
from mimic3d.training.trainer import Trainer

STATE = "state.pt"
PROGRESS = "progress.json"
GENERATOR = "generator"


@dataclass
class Progress:
    """How far a run is and what it measured on the way."""

    nimg: int = 0
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """By images consumed, the metrics of both branches."""
    seconds: float = 0.0
    """Spent in training steps, over all attempts that led here."""


def save_checkpoint(folder: str | Path, trainer: Trainer, progress: Progress) -> Path:
    """Writes everything that a later process needs to go on from here, and the generator ready to draw.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(trainer.state_dict(), folder / STATE)
    except RuntimeError as error:  # PyTorch's zip writer hides a full disk behind its own error.
        raise OSError(f"cannot write {folder / STATE}: {str(error).splitlines()[0]}") from error
    save_generator(folder / GENERATOR, trainer.ema, trainer.config)
    values = {
        "nimg": trainer.nimg,
        "config": fingerprint(trainer.config),
        "metrics": progress.metrics,
        "seconds": progress.seconds,
    }
    (folder / PROGRESS).write_text(json.dumps(values, indent=1))
    return folder


def load_checkpoint(folder: str | Path, trainer: Trainer) -> Progress:
    """Puts `trainer` where `save_checkpoint` found it. Nothing in the folder is executed.

    Raises:
        ValueError: a file is missing or damaged, or the checkpoint is of another config.
    """
    folder = Path(folder)
    damaged = (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError)
    try:
        values = json.loads((folder / PROGRESS).read_text())
        config = values["config"]
        metrics = {int(nimg): found for nimg, found in values["metrics"].items()}
        progress = Progress(values["nimg"], metrics, values["seconds"])
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"{STATE} holds no state of a training")
    except (*damaged, AttributeError) as error:
        raise _damaged(folder, error) from None
    if config != fingerprint(trainer.config):
        raise ValueError(f"the checkpoint {folder} is of another config: give the run another name")
    try:
        trainer.load_state_dict(state)
    except damaged as error:
        raise _damaged(folder, error) from None
    return progress


def _damaged(folder: Path, error: Exception) -> ValueError:
    reason = f"no {error}" if isinstance(error, KeyError) else (str(error).splitlines() or ["no reason"])[0]
    return ValueError(f"the checkpoint {folder} is damaged ({reason}): take an earlier one")
