"""Resumes a run from its newest undamaged checkpoint, or starts it from the weights of `config.start`.

With neither it starts with fresh weights.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from mimic3d.config import Config
from mimic3d.training.checkpoint import Progress, load_checkpoint
from mimic3d.training.trainer import Trainer
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import model_uris
from mimic3d_platform.models.checkpoints import CheckpointStore, DamagedCheckpoint, StoredCheckpoint

Result = TypeVar("Result")

# How long transient errors of storage are retried when the workers start.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Resumed:
    """The state that a run resumes in."""

    progress: Progress
    checkpoint: StoredCheckpoint | None = None


class Resumption:
    """Loads the state that a run resumes in into a trainer; all ranks load the checkpoint that rank 0 chose.

    Args:
        group: a process group on the CPU; None for a single worker.
        note: shows the user a line.
        former_configs: fingerprints of shorter configs that the run had; their checkpoints are accepted.
    """

    def __init__(
        self,
        store: CheckpointStore,
        trainer: Trainer,
        rank: int,
        group: dist.ProcessGroup | None,
        note: Callable[[str], None],
        former_configs: Collection[str] = (),
    ) -> None:
        self._store, self._trainer, self._rank, self._group, self._note = store, trainer, rank, group, note
        self._former_configs = former_configs

    def restore(self, config: Config, start_digest: str) -> Resumed:
        """Loads the newest undamaged checkpoint, else the weights that `config.start` names.

        Args:
            start_digest: the SHA-256 of those weights when the run began.
        Raises:
            UserError: there are checkpoints but all are damaged, or storage does not answer for `PATIENCE_S`.
            ValueError: a checkpoint is of another config.
        """
        newest = self._newest() if self._rank == 0 else None
        chosen = self._broadcast(newest.checkpoint if newest else None)
        if newest is not None and chosen is not None:
            return newest
        if chosen is not None:
            return self.retry(functools.partial(self._load, chosen))
        if config.start:
            with tempfile.TemporaryDirectory(prefix="mimic3d-start-") as folder:
                try:
                    fetched = self.retry(lambda: model_uris.fetch(config.start, Path(folder), start_digest))
                    self._trainer.start_from(fetched)
                except ValueError as error:
                    raise ValueError(str(error).replace(folder, config.start)) from error
        return Resumed(Progress())

    def _newest(self) -> Resumed | None:
        """The newest undamaged checkpoint, loaded; notes the damaged ones that are newer."""
        checkpoints = self.retry(self._store.all)
        damaged: list[str] = []
        for checkpoint in reversed(checkpoints):
            try:
                resumed = self.retry(functools.partial(self._load, checkpoint))
            except DamagedCheckpoint as error:
                damaged.append(str(error))
                continue
            for line in damaged:
                self._note(f"{line}; resuming from the one before it, {checkpoint.name}")
            return resumed
        if damaged:
            raise UserError(
                f"{damaged[0]}, and so are all before it: delete {self._store.uri} to begin anew, or give "
                "another --name"
            )
        return None

    def _load(self, checkpoint: StoredCheckpoint) -> Resumed:
        with tempfile.TemporaryDirectory(prefix="mimic3d-resume-") as name:
            folder = self._store.fetch(checkpoint, Path(name))
            try:
                progress = load_checkpoint(folder, self._trainer, self._former_configs)
            except ValueError as error:
                raise ValueError(str(error).replace(str(folder), checkpoint.uri)) from error
            return Resumed(progress, checkpoint)

    def _broadcast(self, checkpoint: StoredCheckpoint | None) -> StoredCheckpoint | None:
        """Rank 0's choice, on all ranks."""
        if self._group is None:
            return checkpoint
        chosen = [checkpoint]
        dist.broadcast_object_list(chosen, src=0, group=self._group)
        return chosen[0]

    def retry(self, action: Callable[[], Result]) -> Result:
        """The result of `action`, retried while storage does not answer, within `PATIENCE_S`."""
        return retry_with_note(action, self._note, PATIENCE_S)


def retry_with_note(action: Callable[[], Result], note: Callable[[str], None], patience_s: float) -> Result:
    """The result of `action`, retried by `storage.retry`; `note` shows the user what the run waits for."""
    return storage.retry(
        action,
        patience_s=patience_s,
        on_retry=lambda error: note(f"the run waits for its storage: {error}"),
    )
