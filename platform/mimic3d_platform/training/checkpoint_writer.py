"""Writes checkpoints in a thread: a training step waits only for a copy in memory."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mimic3d.training.checkpoint import Snapshot
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import CheckpointStore, KeepPolicy, StoredCheckpoint

# How long transient errors of storage are retried; the training continues meanwhile.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class _Order:
    """A snapshot to store, and its manifest's facts."""

    snapshot: Snapshot
    facts: Mapping[str, Any]


class CheckpointWriter:
    """Stores snapshots as checkpoints one after the other, in a thread of its own.

    While one is being stored another may wait. A newer one replaces the one that waits, so that slow storage
    makes checkpoints rarer and never stops the training.

    Args:
        before: called in the thread before each checkpoint, to store files that the checkpoint depends on.
        on_stored: called in the thread with each checkpoint and the seconds that writing and storing it took.
        on_error: called in the thread with the message of an attempt that failed and is retried.
    """

    def __init__(
        self,
        store: CheckpointStore,
        policy: KeepPolicy,
        *,
        before: Callable[[], None] = lambda: None,
        on_stored: Callable[[StoredCheckpoint, float], None] = lambda checkpoint, seconds: None,
        on_error: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._store, self._policy = store, policy
        self._before, self._on_stored, self._on_error = before, on_stored, on_error
        self._waiting: _Order | None = None
        self._busy = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint writer", daemon=True)
        self._thread.start()

    def save(self, snapshot: Snapshot, facts: Mapping[str, Any], *, may_be_replaced: bool = True) -> None:
        """Hands a snapshot over.

        Args:
            facts: for the manifest.
            may_be_replaced: if not, waits until the thread has begun with it, and before that until it has
                begun with an earlier snapshot that waits.
        Raises:
            UserError: an earlier snapshot could not be stored.
        """
        self._raise_failure()
        order = _Order(snapshot, facts)
        with self._changed:
            if not may_be_replaced:
                self._changed.wait_for(lambda: self._waiting is None or self._failure)
            self._waiting = order
            self._changed.notify_all()
            if not may_be_replaced:
                self._changed.wait_for(lambda: self._waiting is not order or self._failure)
        self._raise_failure()

    def drain(self) -> None:
        """Waits until all is stored.

        Raises:
            UserError: a snapshot could not be stored.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure or (self._waiting is None and not self._busy))
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting is not None)
                order, self._waiting = self._waiting, None
                self._busy = True
                self._changed.notify_all()
            assert order is not None
            try:
                self._write_and_store(order)
            except BaseException as error:
                with self._changed:
                    self._failure, self._busy = error, False
                    self._changed.notify_all()
                return

    def _write_and_store(self, order: _Order) -> None:
        started = time.monotonic()
        folder = _write(order.snapshot)
        try:
            stored = storage.retry(
                self._put(folder, order),
                patience_s=PATIENCE_S,
                on_retry=lambda error: self._on_error(str(error)),
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._on_stored(stored, time.monotonic() - started)
        try:
            self._store.prune(self._policy)
        except UserError as error:  # The checkpoints that are too many are deleted the next time.
            self._on_error(str(error))

    def _put(self, folder: Path, order: _Order) -> Callable[[], StoredCheckpoint]:
        """The attempt to store a written snapshot, always under the same name."""
        nimg = order.snapshot.progress.nimg
        name = self._store.new_name(nimg)

        def attempt() -> StoredCheckpoint:
            self._before()
            return self._store.put(folder, name, nimg, order.facts)

        return attempt


def _write(snapshot: Snapshot) -> Path:
    """Writes a snapshot into a new folder below TMPDIR.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    parent = Path(tempfile.gettempdir())
    try:
        folder = Path(tempfile.mkdtemp(prefix="mimic3d-checkpoint-", dir=parent))
        try:
            return snapshot.write(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or "the write was cut short, the disk may be full"
        raise UserError(
            f"cannot write a checkpoint below {parent}: {reason}; free some space there or set TMPDIR to "
            "another folder, then run the same command again"
        ) from error
