"""Reading shards: whole files verified against the manifest, their row groups, their camera labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimic3d_platform import storage
from mimic3d_platform.data.format.manifest import CAMERA_SIZE, REWRITE, Shard
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.digests import sha256

log = logging.getLogger(__name__)

# Bytes may be corrupted in transfer; a file that is corrupt three times in a row is corrupt in storage.
_TRANSFERS = 3


def verified_bytes(place: str, shard: Shard, *, patience_s: float | None = None) -> bytes:
    """The content of a shard's file, verified against the manifest's size and SHA-256.

    Args:
        place: the URI of the file.
        patience_s: how long transient errors are retried; the settings' patience when None.
    Raises:
        UserError: the file is missing or does not match the manifest, or storage cannot be reached for
            longer than the patience.
    """
    for attempt in range(_TRANSFERS):
        time.sleep(attempt * 0.2)
        data = storage.access(place, "read", lambda: _read(place), patience_s=patience_s)
        if len(data) != shard.bytes:
            problem = f"has {len(data)} bytes and the manifest says {shard.bytes}"
        elif sha256(data) != shard.sha256:
            problem = "is not the file that the manifest describes (SHA-256 differs)"
        else:
            return data
        log.warning("%s %s, in transfer %d of %d", place, problem, attempt + 1, _TRANSFERS)
    raise UserError(f"{place} {problem}: it is damaged or was replaced; {REWRITE}")


def _read(place: str) -> bytes:
    """The content of a file, by pyarrow's S3 client, which a loader process imports faster than s3fs."""
    files, path = storage.arrow_filesystem(place)
    with files.open_input_file(path) as stream:
        return bytes(stream.read())


def open_shard(uri: str, shard: Shard) -> pq.ParquetFile:
    """A verified shard of the data set at `uri`, held in memory.

    Raises:
        UserError: as `verified_bytes`; or the file is not Parquet, or has another number of rows.
    """
    place = storage.join(uri, shard.path)
    data = verified_bytes(place, shard)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{place} is not a Parquet file: {REWRITE}") from error
    rows = file.metadata.num_rows
    if rows != shard.rows:
        raise UserError(f"{place} has {rows} rows and the manifest says {shard.rows}: {REWRITE}")
    return file


def row_groups(uri: str, shard: Shard, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """The shard's row groups in order, each with the index of its first row within the shard.

    Raises:
        UserError: as `open_shard`.
    """
    file, first = open_shard(uri, shard), 0
    for index in range(file.metadata.num_row_groups):
        table = file.read_row_group(index, list(columns))
        yield first, table
        first += len(table)


def camera_array(table: pa.Table) -> np.ndarray:
    """(rows, 25) float32: a table's `camera` column.

    It is read without `to_numpy` and `flatten`, which would load pandas and `pyarrow.compute`.
    """
    chunks = [
        np.from_dlpack(chunk.values).reshape(-1, CAMERA_SIZE)[chunk.offset :][: len(chunk)]
        for chunk in table.column("camera").chunks
    ]
    return np.concatenate(chunks)
