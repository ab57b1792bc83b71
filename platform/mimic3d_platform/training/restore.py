"""Where a worker starts: the run's newest whole checkpoint, else what `config.start` names, else anew."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mimic3d.config import Config
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import model_uris
from mimic3d_platform.models.checkpoints import CheckpointStore, DamagedCheckpoint, StoredCheckpoint
from mimic3d_platform.training.run_log import PENDING

if TYPE_CHECKING:
    from mimic3d.training.checkpoint import Progress
    from mimic3d.training.trainer import Trainer

Result = TypeVar("Result")

# How long transient errors of storage are retried when the workers start.
PATIENCE_S = 600.0


@dataclass
class Found:
    """Where a run goes on."""

    progress: Progress
    checkpoint: StoredCheckpoint | None = None
    pending: dict[str, Any] = field(default_factory=dict)
    """What MLflow had not taken when the checkpoint was made."""


class Resumption:
    """Puts a trainer where the run is; all ranks take the checkpoint that rank 0 found whole.

    Args:
        group: a process group of the CPU, None for a single worker.
        note: tells the user.
    """

    def __init__(
        self,
        store: CheckpointStore,
        trainer: Trainer,
        rank: int,
        group: Any,
        note: Callable[[str], None],
    ) -> None:
        self._store, self._trainer, self._rank, self._group, self._note = store, trainer, rank, group, note

    def restore(self, config: Config, start_digest: str) -> Found:
        """Loads what there is.

        Raises:
            UserError: checkpoints are there but none is whole, or storage stays away.
            ValueError: a checkpoint is of another config.
        """
        found = self._newest() if self._rank == 0 else None
        chosen = self._shared(found.checkpoint if found else None)
        if found is not None and chosen is not None:
            return found
        if chosen is not None:
            return self.retry(functools.partial(self._load, chosen))
        from mimic3d.training.checkpoint import Progress

        if config.start:
            with tempfile.TemporaryDirectory(prefix="mimic3d-start-") as folder:
                try:
                    fetched = self.retry(lambda: model_uris.fetch(config.start, Path(folder), start_digest))
                    self._trainer.start_from(fetched)
                except ValueError as error:
                    raise ValueError(str(error).replace(folder, config.start)) from error
        return Found(Progress())

    def _newest(self) -> Found | None:
        """The newest checkpoint that is whole, loaded; the damaged ones before it are told of."""
        waiting = self.retry(self._store.all)
        damaged: list[str] = []
        for checkpoint in reversed(waiting):
            try:
                found = self.retry(functools.partial(self._load, checkpoint))
            except DamagedCheckpoint as error:
                damaged.append(str(error))
                continue
            for line in damaged:
                self._note(f"{line}; the one before it, {checkpoint.name}, is taken")
            return found
        if damaged:
            raise UserError(
                f"{damaged[0]}, and none before it is whole: delete {self._store.uri} to begin anew, or "
                "give another --name"
            )
        return None

    def _load(self, checkpoint: StoredCheckpoint) -> Found:
        from mimic3d.training.checkpoint import load_checkpoint

        with tempfile.TemporaryDirectory(prefix="mimic3d-resume-") as name:
            folder = self._store.fetch(checkpoint, Path(name))
            try:
                progress = load_checkpoint(folder, self._trainer)
            except ValueError as error:
                raise ValueError(str(error).replace(str(folder), checkpoint.uri)) from error
            pending = folder / PENDING
            return Found(progress, checkpoint, json.loads(pending.read_text()) if pending.exists() else {})

    def _shared(self, checkpoint: StoredCheckpoint | None) -> StoredCheckpoint | None:
        if self._group is None:
            return checkpoint
        import torch.distributed as dist

        told = [checkpoint]
        dist.broadcast_object_list(told, src=0, group=self._group)
        return told[0]

    def retry(self, action: Callable[[], Result]) -> Result:
        return retry_with_note(action, self._note, PATIENCE_S)


def retry_with_note(action: Callable[[], Result], note: Callable[[str], None], patience_s: float) -> Result:
    """The result of `action`, retried by `storage.retry`; `note` tells the user what the run waits for."""
    return storage.retry(
        action,
        patience_s=patience_s,
        on_retry=lambda error: note(f"the run waits for its storage: {error}"),
    )
