"""The cache of shards on local disk, shared by all processes of a machine and bounded in size.

Each shard is fetched once, verified, and kept under its SHA-256: data sets and runs share the shards that
they have in common, and a replaced shard is another file. Locks (`flock`) end with the process that holds
them, so that a killed process leaves nothing to clean up. A file that a process has open is not evicted; of
the others, the least recently used are evicted first.

A cached shard is found without PyArrow, storage and settings, which are imported only to fetch one: a loader
process that has nothing to fetch starts in a third of the time.
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
from mimic3d_platform.data.stream.cache_files import DamagedFileError, PixelFile, RowFile

log = logging.getLogger(__name__)

CACHE_BYTES = 16 * 2**30

_ROWS, _PIXELS, _PARTIAL = ".rows", ".pixels", ".partial"
_POLL_S = 0.01


def cache_folder() -> Path:
    """The default folder: `$MIMIC3D_CACHE`, else `shards/` of the state folder."""
    from mimic3d_platform.settings import get_settings

    settings = get_settings()
    return settings.cache_folder or settings.home / "shards"


class ShardCache:
    """The cached shards under `folder`.

    Args:
        limit: bytes of all files together.
        patience_s: how long transient errors of storage, and a lack of room, are retried; the settings'
            patience when None.
    Raises (also by the methods that fetch):
        UserError: a shard is missing or does not match the manifest; for longer than the patience, storage
            cannot be reached, the disk is full, or files in use leave no room within the limit.
    """

    def __init__(self, folder: Path, limit: int, patience_s: float | None = None) -> None:
        self.folder, self.limit, self._patience_s = folder, limit, patience_s
        with _translated(folder):
            (folder / "locks").mkdir(parents=True, exist_ok=True)

    def open(self, uri: str, shard: Shard, *, fetch_delay_s: float = 0.0) -> RowFile:
        """The rows of a shard of the data set at `uri`; the shard is fetched unless it is cached.

        Args:
            fetch_delay_s: how long to wait for another process to fetch it before it is fetched here.
        """
        path = self.folder / (shard.sha256 + _ROWS)
        until = time.monotonic() + fetch_delay_s
        while True:
            try:
                return RowFile(path)
            except FileNotFoundError:
                if time.monotonic() < until:
                    time.sleep(_POLL_S)
                else:
                    self.ensure(uri, shard)
            except DamagedFileError:
                log.warning("%s is damaged; the shard is fetched again", path)
                path.unlink(missing_ok=True)

    def ensure(self, uri: str, shard: Shard, *, wait: bool = True) -> None:
        """Fetches a shard unless it is cached.

        Args:
            wait: if another process is fetching it, wait for that; if False, return at once.
        """
        path = self.folder / (shard.sha256 + _ROWS)
        if path.exists():
            return
        with self._lock(shard.sha256[:2], wait) as acquired:
            if acquired and not path.exists():
                self._fetch(path, uri, shard)

    def discard(self, shard: Shard) -> None:
        """Deletes the files of a shard."""
        for suffix in (_ROWS, _PIXELS):
            (self.folder / (shard.sha256 + suffix)).unlink(missing_ok=True)

    def pixels(self, shard: Shard, side: int) -> PixelFile | None:
        """The file of a shard's decoded images; None if there is no room for it."""
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
        """Bytes of all files, including those being written."""
        return sum(size for _, size, _ in self._files())

    def _fetch(self, path: Path, uri: str, shard: Shard) -> None:
        """Reads a shard from storage and writes its file; waits, within the patience, for room."""
        from mimic3d_platform import storage
        from mimic3d_platform.data.format.read_shards import verified_bytes

        place = storage.join(uri, shard.path)
        data = verified_bytes(place, shard, patience_s=self._patience_s)
        storage.retry(lambda: self._store(path, place, shard, data), patience_s=self._patience_s)

    def _store(self, path: Path, place: str, shard: Shard, data: bytes) -> None:
        """Writes the file of a shard.

        Raises:
            StorageError: there is no room; transient, since other processes may free some.
        """
        from mimic3d_platform.data.stream.unpack_shard import unpack_shard
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
            fcntl.flock(file, fcntl.LOCK_EX)  # Other processes must not evict it.
            file.truncate(needed)
        try:
            with file:
                unpack_shard(file, place, shard, data)
                file.truncate()
                file.flush()
                os.replace(partial, path)
            os.utime(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                with _translated(self.folder):
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
        """Evicts unused files until `needed` more bytes are within `limit`; False if that is impossible."""
        files = sorted(self._files())
        over = sum(size for _, size, _ in files) + needed - limit
        for _, size, path in files:
            if over <= 0:
                break
            if _unlink_unused(path):
                over -= size
        return over <= 0

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of each file."""
        for entry in os.scandir(self.folder):
            if entry.name.endswith((_ROWS, _PIXELS, _PARTIAL)):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield status.st_mtime, status.st_size, Path(entry.path)

    @contextlib.contextmanager
    def _lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """A lock for one thread of one process of this machine at a time; yields whether it was acquired."""
        with (self.folder / "locks" / name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _unlink_unused(path: Path) -> bool:
    """Deletes a file unless a process has it open under a lock; False if one has."""
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
def _translated(folder: Path) -> Iterator[None]:
    """Translates the system's errors into a `StorageError`."""
    try:
        yield
    except OSError:
        from mimic3d_platform.storage.errors import translate_errors

        with translate_errors(folder, "keep shards in"):
            raise
