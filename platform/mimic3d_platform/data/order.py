"""The order in which training sees a data set: a function of (seed, epoch, index) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mimic3d_platform.data import counter
from mimic3d_platform.data.schema import Manifest

# Rows are shuffled among as many row groups as this holds, so that a set far larger than memory is read in
# passing. It decides the order: to change it is to break the resumption of running trainings.
WINDOW_BYTES = 256 * 2**20


@dataclass(frozen=True)
class RowGroup:
    """A row group: its shard, its index in the shard, and its rows as numbers within the whole set."""

    shard: int
    index: int
    start: int
    rows: int


def row_groups(manifest: Manifest) -> list[RowGroup]:
    """All row groups of a set, in the order of its rows."""
    groups = []
    start, most = 0, manifest.row_group_rows
    for number, shard in enumerate(manifest.shards):
        for index, first in enumerate(range(0, shard.rows, most)):
            rows = min(most, shard.rows - first)
            groups.append(RowGroup(number, index, start, rows))
            start += rows
    return groups


class EpochOrder:
    """An endless order of rows, every row once an epoch.

    In each epoch the row groups are shuffled and cut into windows of about `WINDOW_BYTES`; within a window
    all rows are shuffled. A set that fits one window is thus shuffled as a whole.
    """

    def __init__(self, manifest: Manifest, seed: int) -> None:
        self.count, self._seed = manifest.count, seed
        self._groups = row_groups(manifest)
        size = sum(shard.bytes for shard in manifest.shards) / len(self._groups)
        self._window = max(int(WINDOW_BYTES // max(size, 1)), 1)
        self._epochs: dict[int, np.ndarray] = {}

    def rows(self, position: int, count: int) -> np.ndarray:
        """(count,) int64: the row numbers at `position` and after it in the endless order."""
        parts = []
        while count > 0:
            epoch, index = divmod(position, self.count)
            part = self._epoch(epoch)[index : index + count]
            parts.append(part)
            position, count = position + len(part), count - len(part)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            order = counter.permutation(self._seed, "row groups", epoch, size=len(self._groups))
            windows = []
            for number, first in enumerate(range(0, len(order), self._window)):
                groups = [self._groups[group] for group in order[first : first + self._window]]
                rows = np.concatenate([np.arange(item.start, item.start + item.rows) for item in groups])
                windows.append(rows[counter.permutation(self._seed, "rows", epoch, number, size=len(rows))])
            # A batch straddles two epochs at most; what lies behind is not asked for again.
            self._epochs = {key: rows for key, rows in self._epochs.items() if key == epoch - 1}
            self._epochs[epoch] = np.concatenate(windows)
        return self._epochs[epoch]
