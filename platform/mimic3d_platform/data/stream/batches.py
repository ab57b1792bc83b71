"""What batches a rank gets, how one is made, and the shards that are fetched for it ahead of time."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mimic3d.training.order import EpochOrder, Window
from mimic3d_platform.data.format.manifest import CAMERA_SIZE, Manifest
from mimic3d_platform.data.stream.row_reader import RowReader
from mimic3d_platform.data.stream.shard_cache import ShardCache
from mimic3d_platform.errors import UserError

_FETCHERS = 2  # Threads that fetch ahead, each with a shard in memory.


@dataclass(frozen=True)
class Course:
    """All that decides the batches of one rank: batch k holds `share` rows from `start + k·step` on."""

    uri: str
    manifest: Manifest
    seed: int
    cache_folder: Path
    cache_bytes: int
    skip_bad: bool
    patience_s: float | None
    start: int
    share: int
    step: int

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        side = self.manifest.resolution
        return self.share, 3, side, side

    @property
    def slot_bytes(self) -> int:
        """Room for a batch's images and cameras, in whole pages."""
        size = int(np.prod(self.image_shape)) + 4 + 4 * CAMERA_SIZE * self.share
        return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


class Made(NamedTuple):
    """A batch: images (n, 3, R, R) uint8, cameras (n, 25) float32, and all rows found bad so far."""

    images: np.ndarray
    cameras: np.ndarray
    bad_rows: frozenset[int]


class BatchMaker:
    """Makes a course's batches.

    Args:
        leave_s: as `RowReader`.
    """

    def __init__(self, course: Course, leave_s: float = 0.0) -> None:
        self._course = course
        self._order = EpochOrder(course.manifest, course.seed)
        self._reader = RowReader(
            course.uri,
            course.manifest,
            course.cache_bytes,
            folder=course.cache_folder,
            skip_bad=course.skip_bad,
            leave_s=leave_s,
            patience_s=course.patience_s,
        )

    def make(self, number: int, images: np.ndarray | None = None, cameras: np.ndarray | None = None) -> Made:
        """Batch `number`, in the given arrays or new ones."""
        course = self._course
        rows = self._order.rows(course.start + number * course.step, course.share)
        images, cameras = self._reader.fetch(rows, images, cameras)
        return Made(images, cameras, frozenset(self._reader.bad_rows))

    def close(self) -> None:
        """Lets go of all files."""
        self._reader.close()


class ShardsAhead:
    """Threads that fetch into the cache the shards of the windows of the batches ahead, and of the next."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._order = EpochOrder(course.manifest, course.seed)
        self._announced: list[Window] = []
        self._told = [queue.SimpleQueue[list[int] | None]() for _ in range(_FETCHERS)]
        cache = ShardCache(course.cache_folder, course.cache_bytes, course.patience_s)
        for told in self._told:
            work = (course, cache, told)
            threading.Thread(target=_fetch_ahead, args=work, name="shards ahead", daemon=True).start()

    def reach(self, first: int, last: int) -> None:
        """Says that batches `first` to `last` will be made soon."""
        course = self._course
        end = course.start + last * course.step + course.share - 1
        windows = self._order.windows_from(course.start + first * course.step, end)
        if windows != self._announced:
            self._announced = windows
            for told in self._told:
                told.put([shard for window in windows for shard in window.shards])

    def close(self) -> None:
        """Ends the threads, when the shards that they are at have come; that is not waited for."""
        for told in self._told:
            told.put(None)

    def __del__(self) -> None:
        self.close()


def _fetch_ahead(course: Course, cache: ShardCache, told: queue.SimpleQueue[list[int] | None]) -> None:
    while (shards := told.get()) is not None:
        # First what no other thread or process is fetching, so that several shards come at a time.
        for wait, shard in itertools.product((False, True), shards):
            if not told.empty():
                break
            # Whoever needs this shard meets the fault too, and then it is told.
            with contextlib.suppress(UserError):
                cache.ensure(course.uri, course.manifest.shards[shard], wait=wait)
