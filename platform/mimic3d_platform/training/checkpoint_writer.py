"""Checkpoints are written beside the training: the step only waits for a copy in memory."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import CheckpointStore, KeepPolicy, StoredCheckpoint

if TYPE_CHECKING:
    from mimic3d.training.checkpoint import Snapshot

# How long transient errors of storage are retried; the training continues meanwhile.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class _Work:
    snapshot: Snapshot
    facts: Mapping[str, Any]
    extra: Mapping[str, Any]
    after: Callable[[StoredCheckpoint], None] | None


class CheckpointWriter:
    """Takes snapshots and stores them one after the other, in a thread of its own.

    While one is on its way another may wait; a newer one takes the place of that, so that slow storage makes
    checkpoints rarer and never stops the training.

    Args:
        on_error: called in the thread with the message of an attempt that failed and is retried.
    """

    def __init__(
        self, store: CheckpointStore, policy: KeepPolicy, on_error: Callable[[str], None] = lambda line: None
    ) -> None:
        self.store, self.policy = store, policy
        self.stored_seconds = 0.0
        """How long the last one took to be written and stored."""
        self._on_error = on_error
        self._waiting: _Work | None = None
        self._busy = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint writer", daemon=True)
        self._thread.start()

    def save(
        self,
        snapshot: Snapshot,
        facts: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        after: Callable[[StoredCheckpoint], None] | None = None,
        must: bool = False,
    ) -> None:
        """Hands a snapshot over.

        Args:
            facts: for the manifest.
            extra: JSON files to store with it, by name.
            after: called in the thread once it is stored.
            must: it may not be replaced: waits until it is under way, and an earlier one that must as well.
        Raises:
            UserError: an earlier one could not be stored.
        """
        self.check()
        work = _Work(snapshot, facts, extra or {}, after)
        with self._changed:
            if must:
                self._changed.wait_for(lambda: self._waiting is None or self._failure)
            self._waiting = work
            self._changed.notify_all()
            if must:
                self._changed.wait_for(lambda: self._waiting is not work or self._failure)
        self.check()

    def check(self) -> None:
        """Raises what storing has met, if anything."""
        if self._failure is not None:
            raise self._failure

    def drain(self) -> None:
        """Waits until all is stored.

        Raises:
            UserError: it could not be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or (self._waiting is None and not self._busy))
        self.check()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting is not None)
                work, self._waiting = self._waiting, None
                self._busy = True
                self._changed.notify_all()
            assert work is not None
            try:
                self._store(work)
            except BaseException as error:
                with self._changed:
                    self._failure, self._busy = error, False
                    self._changed.notify_all()
                return

    def _store(self, work: _Work) -> None:
        started = time.monotonic()
        folder = _write(work)
        try:
            stored = self._put(folder, work)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.stored_seconds = time.monotonic() - started
        if work.after is not None:
            work.after(stored)
        try:
            self.store.prune(self.policy)
        except UserError as error:  # What is too many now is deleted the next time.
            self._on_error(str(error))

    def _put(self, folder: Path, work: _Work) -> StoredCheckpoint:
        nimg = work.snapshot.progress.nimg
        name = self.store.new_name(nimg)
        return storage.retry(
            lambda: self.store.put(folder, name, nimg, work.facts),
            patience_s=PATIENCE_S,
            on_retry=lambda error: self._on_error(str(error)),
        )


def _write(work: _Work) -> Path:
    """A new folder, below TMPDIR, that holds the snapshot."""
    from safetensors import SafetensorError

    place = Path(tempfile.gettempdir())
    try:
        folder = Path(tempfile.mkdtemp(prefix="mimic3d-checkpoint-", dir=place))
        try:
            work.snapshot.write(folder)
            for name, values in work.extra.items():
                (folder / name).write_text(json.dumps(values))
            return folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or "the write was cut short, the disk may be full"
        raise UserError(
            f"cannot write a checkpoint below {place}: {reason}; free some space there or set TMPDIR to "
            "another folder, then run the same command again"
        ) from error
