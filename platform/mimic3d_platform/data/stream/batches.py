"""The batches of a rank, and reading one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimic3d.training.order import EpochOrder
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.stream.row_reader import RowReader


@dataclass(frozen=True)
class BatchPlan:
    """All that the batches of one rank depend on, and where its shards are cached.

    Attributes:
        uri: of the data set.
        skip_bad: replace images that cannot be decoded (`RowReader`).
        patience_s: how long transient errors of storage are retried; the settings' patience when None.
        first_position: of the rank's first row in the endless order of rows.
        batch_size: rows of each of the rank's batches.
        stride: positions from one of the rank's batches to its next: the size of the global batch.
    """

    uri: str
    manifest: Manifest
    seed: int
    cache_folder: Path
    cache_bytes: int
    skip_bad: bool
    patience_s: float | None
    first_position: int
    batch_size: int
    stride: int

    def position(self, number: int) -> int:
        """The position of the first row of batch `number`."""
        return self.first_position + number * self.stride


@dataclass(frozen=True)
class DecodedBatch:
    """A rank's batch in memory.

    Attributes:
        images: (n, 3, R, R) uint8.
        cameras: (n, 25) float32.
        bad_rows: all rows that the reader has found undecodable so far.
    """

    images: np.ndarray
    cameras: np.ndarray
    bad_rows: frozenset[int]


class BatchReader:
    """Reads any batch of a plan.

    Args:
        fetch_delay_s: as `RowReader`.
    """

    def __init__(self, plan: BatchPlan, fetch_delay_s: float = 0.0) -> None:
        self._plan = plan
        self._order = EpochOrder(plan.manifest, plan.seed)
        self._reader = RowReader(
            plan.uri,
            plan.manifest,
            plan.cache_bytes,
            folder=plan.cache_folder,
            skip_bad=plan.skip_bad,
            fetch_delay_s=fetch_delay_s,
            patience_s=plan.patience_s,
        )

    def read(
        self, number: int, images: np.ndarray | None = None, cameras: np.ndarray | None = None
    ) -> DecodedBatch:
        """Batch `number`, written to the given arrays, or to new ones.

        Raises:
            UserError: as `RowReader.read`.
        """
        rows = self._order.rows(self._plan.position(number), self._plan.batch_size)
        images, cameras = self._reader.read(rows, images, cameras)
        return DecodedBatch(images, cameras, frozenset(self._reader.bad_rows))

    def close(self) -> None:
        """Closes all files."""
        self._reader.close()
