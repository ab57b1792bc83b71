"""The order in which training reads a data set's rows: a function of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mimic3d import randomness

# Bytes of the shards whose rows are shuffled together: a data set larger than the disk is read window by
# window. The order depends on it: with another value, resumed trainings would see other images.
WINDOW_BYTES = 2**30


class Shard(Protocol):
    """A file of a data set: the properties that the order depends on."""

    @property
    def rows(self) -> int: ...

    @property
    def bytes(self) -> int: ...


class Shards(Protocol):
    """A data set: the properties that the order depends on. `count` is the number of rows of all shards."""

    @property
    def count(self) -> int: ...

    @property
    def shards(self) -> Sequence[Shard]: ...


@dataclass(frozen=True)
class Window:
    """A shuffle window: shards whose rows are shuffled together; positions [start, stop) of an epoch."""

    shards: tuple[int, ...]
    start: int
    stop: int


class EpochOrder:
    """An endless order of rows, every row once an epoch.

    In each epoch the shards are shuffled and cut into windows of about `WINDOW_BYTES`; within a window all
    rows are shuffled. A set that fits one window is thus shuffled as a whole. Epoch 0 begins with windows of
    one, two, four … shards, so that a training need not fetch a whole window before its first batch.
    """

    def __init__(self, manifest: Shards, seed: int) -> None:
        self.count, self._seed = manifest.count, seed
        self._bytes = np.array([shard.bytes for shard in manifest.shards], dtype=np.int64)
        self._rows = np.array([shard.rows for shard in manifest.shards], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._rows)])
        self._windows: dict[int, list[Window]] = {}
        self._parts: dict[tuple[int, int], np.ndarray] = {}

    def rows(self, position: int, count: int) -> np.ndarray:
        """(count,) int64: the row numbers at `position` and after it in the endless order."""
        parts = []
        while count > 0:
            epoch, index = divmod(position, self.count)
            number, window = self._window_at(epoch, index)
            part = self._window_rows(epoch, number)[index - window.start :][:count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def windows_from(self, first: int, last: int) -> list[Window]:
        """The windows that hold the positions from `first` to `last`, and at least one after the first."""
        found: list[Window] = []
        epoch, index = divmod(first, self.count)
        reached = -1
        while True:
            for window in self.windows(epoch):
                if len(found) > 1 and reached >= last:
                    return found
                if window.stop > index:
                    found.append(window)
                    reached = epoch * self.count + window.stop - 1
            epoch, index = epoch + 1, 0

    def windows(self, epoch: int) -> list[Window]:
        """An epoch's windows, in their order."""
        if epoch not in self._windows:
            order = randomness.permutation(self._seed, "shards", epoch, size=len(self._rows))
            shards = order.tolist()
            windows, start, most = [], 0, 1 if epoch == 0 else len(shards)
            while shards:
                size = max(int(np.searchsorted(np.cumsum(self._bytes[shards]), WINDOW_BYTES, "right")), 1)
                taken, shards = shards[: min(size, most)], shards[min(size, most) :]
                rows = int(self._rows[taken].sum())
                windows.append(Window(tuple(taken), start, start + rows))
                start, most = start + rows, 2 * most
            # A batch straddles two epochs at most; what lies behind is not asked for again.
            self._windows = {key: value for key, value in self._windows.items() if key >= epoch - 1}
            self._windows[epoch] = windows
        return self._windows[epoch]

    def _window_at(self, epoch: int, index: int) -> tuple[int, Window]:
        windows = self.windows(epoch)
        number = int(np.searchsorted([window.stop for window in windows], index, side="right"))
        return number, windows[number]

    def _window_rows(self, epoch: int, number: int) -> np.ndarray:
        if (epoch, number) not in self._parts:
            shards = self.windows(epoch)[number].shards
            rows = np.concatenate([np.arange(self._starts[item], self._starts[item + 1]) for item in shards])
            while len(self._parts) > 2:
                del self._parts[next(iter(self._parts))]
            shuffled = randomness.permutation(self._seed, "rows", epoch, number, size=len(rows))
            self._parts[epoch, number] = rows[shuffled]
        return self._parts[epoch, number]
