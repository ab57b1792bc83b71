"""Shards on local disk: each fetched once for all processes of a machine, verified, within a bound of bytes.

Files bear the SHA-256 of the shard they were made from, so that sets and jobs share what they have in common
and a replaced shard is another file. Locks (`flock`) end with the process that held them: whoever is killed
leaves nothing to clear up. A file that someone has open is not evicted; of the others, the least recently
used go first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.data.rowfile import Damaged, PixelFile, RowFile, write_rows
from mimic3d_platform.data.schema import CAMERA_SIZE, Shard
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

CACHE_BYTES = 16 * 2**30

_AGAIN = "write the data set again, or copy it anew"
_ROWS, _PIXELS, _PARTIAL = ".rows", ".pixels", ".partial"
# A transfer may be spoilt on its way; what is spoilt three times is spoilt where it lies.
_TRANSFERS = 3
_LONGEST_PAUSE_S = 5.0


def cache_folder() -> Path:
    """`$MIMIC3D_CACHE`, else a folder of the state folder."""
    settings = get_settings()
    return settings.cache_folder or settings.home / "shards"


class ShardCache:
    """The shards of data sets under `folder`, `limit` bytes at most.

    Raises, from all that fetches:
        UserError: a shard is missing, out of reach for longer than the settings' patience, or not the one of
            the manifest; the disk is full, or the bound too small for what is in use at once.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        with storage.translate_errors(folder, "keep shards in"):
            (folder / "locks").mkdir(parents=True, exist_ok=True)

    def open(self, place: str, shard: Shard) -> RowFile:
        """A shard's rows; fetched, if no process has yet.

        Args:
            place: the shard's URI.
        """
        path = self.folder / (shard.sha256 + _ROWS)
        while True:
            try:
                return RowFile(path)
            except FileNotFoundError:
                self.ensure(place, shard)
            except Damaged:
                log.warning("%s is damaged; the shard is fetched again", path)
                path.unlink(missing_ok=True)

    def ensure(self, place: str, shard: Shard) -> None:
        """Fetches a shard unless it is here; if another process is at it, waits for that."""
        path = self.folder / (shard.sha256 + _ROWS)
        if path.exists():
            return
        with self._lock(shard.sha256[:2]):
            if not path.exists():
                self._store(path, place, shard, verified_bytes(place, shard))

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

    def _store(self, path: Path, place: str, shard: Shard, data: bytes) -> None:
        """Writes a verified shard's images and cameras; waits, within patience, for room on the disk."""
        began, pause, patience = time.monotonic(), 0.1, get_settings().patience_s
        while True:
            problem = self._try_store(path, place, shard, data)
            if problem is None:
                return
            if time.monotonic() - began >= patience:
                raise UserError(f"cannot keep {place} in {self.folder}: {problem}")
            log.warning("cannot keep %s in %s: %s; trying again", place, self.folder, problem)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _try_store(self, path: Path, place: str, shard: Shard, data: bytes) -> str | None:
        """What is in the way, or None when the file is there."""
        needed = RowFile.most_bytes(shard)
        partial = path.with_suffix(_PARTIAL)
        with self._lock("room"):
            if not self._make_room(needed, self.limit):
                return (
                    f"{needed >> 20} MiB more would exceed its bound of {self.limit >> 20} MiB, and all "
                    "of it is in use; raise data.cache_bytes, or set MIMIC3D_CACHE to another folder"
                )
            file = partial.open("wb")
            fcntl.flock(file, fcntl.LOCK_EX)  # Shows those who look for room that it is being written.
            file.truncate(needed)
        try:
            with file:
                _unpack(file, place, shard, data)
                file.truncate()
                file.flush()
                os.replace(partial, path)
            os.utime(path)
            return None
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                with storage.translate_errors(self.folder, "keep shards in"):
                    raise
            with self._lock("room"):
                self._make_room(needed, max(self.used() - 1, 0))
            return "no space is left on the device; free some, or set MIMIC3D_CACHE to another folder"
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
    def _lock(self, name: str) -> Iterator[None]:
        """For one process and thread at a time on this machine."""
        with (self.folder / "locks" / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def verified_bytes(place: str, shard: Shard) -> bytes:
    """A shard's file, as the manifest describes it.

    Raises:
        UserError: see `ShardCache`.
    """
    for attempt in range(_TRANSFERS):
        time.sleep(attempt * 0.2)
        data = storage.read_bytes(place)
        if len(data) != shard.bytes:
            problem = f"has {len(data)} bytes and the manifest says {shard.bytes}"
        elif hashlib.sha256(data).hexdigest() != shard.sha256:
            problem = "is not the file that the manifest describes (SHA-256 differs)"
        else:
            return data
        log.warning("%s %s, in transfer %d of %d", place, problem, attempt + 1, _TRANSFERS)
    raise UserError(f"{place} {problem}: it is damaged or was replaced; {_AGAIN}")


def _unpack(file: BinaryIO, place: str, shard: Shard, data: bytes) -> None:
    """Writes a Parquet shard's images and cameras as a `RowFile`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage.translate_errors(place, "read"):
        table = pq.read_table(pa.BufferReader(data), columns=["image", "camera"], use_threads=False)
    if table.num_rows != shard.rows:
        raise UserError(f"{place} has {table.num_rows} rows and the manifest says {shard.rows}: {_AGAIN}")
    views = [view for chunk in table.column("image").chunks for view in _views(chunk)]
    write_rows(file, views, camera_array(table))


def _views(images: pyarrow.Array) -> Iterator[memoryview]:
    """Each value of a binary array, without a copy."""
    import pyarrow as pa

    large = images.cast(pa.large_binary())
    _, offsets, data = large.buffers()
    places = np.frombuffer(offsets, dtype=np.int64)[large.offset : large.offset + len(large) + 1].tolist()
    content = memoryview(data)
    return (content[start:stop] for start, stop in itertools.pairwise(places))


def camera_array(table: pyarrow.Table) -> np.ndarray:
    """(rows, 25) float32 from a table's `camera` column."""
    column = table.column("camera").combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, CAMERA_SIZE).copy()


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
