"""Shards on local disk: each fetched once for all processes of a machine, verified, within a bound of bytes.

Files bear the SHA-256 of the shard they were made from, so that sets and jobs share what they have in common
and a replaced shard is another file. Locks (`flock`) end with the process that held them: whoever is killed
leaves nothing to clear up. A file that someone has open is not evicted; of the others, the least recently
used go first.

What is here is found without PyArrow, storage and settings: a loader process that need not fetch starts in a
third of the time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from mimic3d_platform.data.format.manifest import Shard
from mimic3d_platform.data.stream.cache_files import Damaged, PixelFile, RowFile

log = logging.getLogger(__name__)

CACHE_BYTES = 16 * 2**30

_ROWS, _PIXELS, _PARTIAL = ".rows", ".pixels", ".partial"
_LOOK_AGAIN_S = 0.01


def cache_folder() -> Path:
    """`$MIMIC3D_CACHE`, else a folder of the state folder."""
    from mimic3d_platform.settings import get_settings

    settings = get_settings()
    return settings.cache_folder or settings.home / "shards"


class ShardCache:
    """The shards of data sets under `folder`, `limit` bytes at most.

    Args:
        patience_s: how long transient errors of storage, and a disk without room, are retried; the settings'
            if not given.
    Raises, from all that fetches:
        UserError: a shard is missing, out of reach for longer than the patience, or not the one of the
            manifest; the disk is full, or the bound too small for what is in use at once.
    """

    def __init__(self, folder: Path, limit: int, patience_s: float | None = None) -> None:
        self.folder, self.limit, self._patience_s = folder, limit, patience_s
        with _explained(folder):
            (folder / "locks").mkdir(parents=True, exist_ok=True)

    def open(self, uri: str, shard: Shard, *, leave_s: float = 0.0) -> RowFile:
        """The rows of a shard of the set at `uri`; fetched, if no process has yet.

        Args:
            leave_s: for so long the fetching is left to others, who are expected to be at it.
        """
        path = self.folder / (shard.sha256 + _ROWS)
        until = time.monotonic() + leave_s
        while True:
            try:
                return RowFile(path)
            except FileNotFoundError:
                if time.monotonic() < until:
                    time.sleep(_LOOK_AGAIN_S)
                else:
                    self.ensure(uri, shard)
            except Damaged:
                log.warning("%s is damaged; the shard is fetched again", path)
                path.unlink(missing_ok=True)

    def ensure(self, uri: str, shard: Shard, *, wait: bool = True) -> None:
        """Fetches a shard unless it is here; if another process is at it, waits for that, or leaves it."""
        path = self.folder / (shard.sha256 + _ROWS)
        if path.exists():
            return
        with self._lock(shard.sha256[:2], wait) as mine:
            if mine and not path.exists():
                self._fetch(path, uri, shard)

    def discard(self, shard: Shard) -> None:
        """Deletes what is kept of a shard."""
        for suffix in (_ROWS, _PIXELS):
            (self.folder / (shard.sha256 + suffix)).unlink(missing_ok=True)

    def pixels(self, shard: Shard, side: int) -> PixelFile | None:
        """Where a shard's decoded images are kept; None if there is no room."""
        path = self.folder / (shard.sha256 + _PIXELS)
        with self._lock("room"):
            if not path.exists() and not self._make_room(PixelFile.bytes_of(shard.rows, side), self.limit):
                return None
            try:
                return PixelFile(path, shard.rows, side)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                return None

    def used(self) -> int:
        """Bytes of all files, counting room that is set aside."""
        return sum(size for _, size, _ in self._files())

    def _fetch(self, path: Path, uri: str, shard: Shard) -> None:
        """Reads a shard and keeps its images and cameras; waits, within the patience, for room."""
        from mimic3d_platform import storage
        from mimic3d_platform.data.format.fetching import verified_bytes

        place = storage.join(uri, shard.path)
        data = verified_bytes(place, shard, patience_s=self._patience_s)
        storage.retry(lambda: self._store(path, place, shard, data), patience_s=self._patience_s)

    def _store(self, path: Path, place: str, shard: Shard, data: bytes) -> None:
        """Writes the file of a shard.

        Raises:
            StorageError: there is no room; transient, since others may free some.
        """
        from mimic3d_platform.data.format.fetching import unpack
        from mimic3d_platform.storage import StorageError

        needed = RowFile.most_bytes(shard)
        partial = path.with_suffix(_PARTIAL)
        with self._lock("room"):
            if not self._make_room(needed, self.limit):
                raise StorageError(
                    f"cannot keep {place} in {self.folder}: {needed >> 20} MiB more would exceed its "
                    f"bound of {self.limit >> 20} MiB, and all of it is in use; raise data.cache_bytes, or "
                    "set MIMIC3D_CACHE to another folder",
                    transient=True,
                )
            file = partial.open("wb")
            fcntl.flock(file, fcntl.LOCK_EX)  # Shows those who look for room that it is being written.
            file.truncate(needed)
        try:
            with file:
                unpack(file, place, shard, data)
                file.truncate()
                file.flush()
                os.replace(partial, path)
            os.utime(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                with _explained(self.folder):
                    raise
            with self._lock("room"):
                self._make_room(needed, max(self.used() - 1, 0))
            raise StorageError(
                f"cannot keep {place} in {self.folder}: no space is left on the device; free some, or set "
                "MIMIC3D_CACHE to another folder",
                transient=True,
            ) from error
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _make_room(self, needed: int, limit: int) -> bool:
        """Evicts what nobody uses until `needed` bytes more are within `limit`; whether that was enough."""
        files = sorted(self._files())
        over = sum(size for _, size, _ in files) + needed - limit
        for _, size, path in files:
            if over <= 0:
                break
            if _unlink_unused(path):
                over -= size
        return over <= 0

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(when last used, bytes, path) of each."""
        for entry in os.scandir(self.folder):
            if entry.name.endswith((_ROWS, _PIXELS, _PARTIAL)):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield status.st_mtime, status.st_size, Path(entry.path)

    @contextlib.contextmanager
    def _lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """For one process and thread at a time on this machine; gives whether it is for this one."""
        with (self.folder / "locks" / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _unlink_unused(path: Path) -> bool:
    """Deletes a file unless a process has it open under a lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns the system's errors into one line."""
    try:
        yield
    except OSError:
        from mimic3d_platform.storage.errors import translate_errors

        with translate_errors(folder, "keep shards in"):
            raise
