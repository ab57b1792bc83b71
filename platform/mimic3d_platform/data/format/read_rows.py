"""Reads a few rows of a data set: only the row groups that hold them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimic3d_platform import storage
from mimic3d_platform.data.format.manifest import Manifest


def read_rows(uri: str, manifest: Manifest, rows: np.ndarray) -> list[tuple[bytes, np.ndarray]]:
    """The encoded images and the cameras of some rows of the set, in the order of `rows`.

    Raises:
        UserError: a shard cannot be read.
    """
    shards, offsets = manifest.locate(rows)
    wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, shard, offset in zip(rows.tolist(), shards.tolist(), offsets.tolist(), strict=True):
        group, offset = divmod(offset, manifest.row_group_rows)
        wanted.setdefault((shard, group), []).append((row, offset))
    found = {}
    for (shard, group), members in sorted(wanted.items()):
        table = _read_row_group(storage.join(uri, manifest.shards[shard].path), group)
        for row, offset in members:
            found[row] = (table["image"][offset].as_py(), np.array(table["camera"][offset].as_py()))
    return [found[row] for row in rows.tolist()]


def _read_row_group(place: str, group: int) -> pa.Table:
    def read() -> pa.Table:
        files, path = storage.arrow_filesystem(place)
        with files.open_input_file(path) as stream:
            return pq.ParquetFile(stream).read_row_group(group, ["image", "camera"])

    return storage.access(place, "read", read)
