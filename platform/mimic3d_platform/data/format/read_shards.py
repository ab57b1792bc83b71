"""Shards read whole, checked against the manifest, and gone through once, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mimic3d_platform import storage
from mimic3d_platform.data.format.fetching import verified_bytes
from mimic3d_platform.data.format.manifest import AGAIN, Shard
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


def open_shard(uri: str, shard: Shard) -> pyarrow.parquet.ParquetFile:
    """A shard of the set at `uri`, in memory.

    Raises:
        UserError: it is missing, out of reach, not the file that the manifest describes, or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = storage.join(uri, shard.path)
    data = verified_bytes(place, shard)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{place} is no Parquet file: {AGAIN}") from error
    if file.metadata.num_rows != shard.rows:
        raise UserError(f"{place} has {file.metadata.num_rows} rows, the manifest says {shard.rows}: {AGAIN}")
    return file


def row_batches(uri: str, shard: Shard, columns: list[str]) -> Iterator[tuple[int, pyarrow.Table]]:
    """The shard's row groups in order, each with the number of its first row within the shard.

    Raises:
        UserError: as `open_shard`.
    """
    file, first = open_shard(uri, shard), 0
    for index in range(file.metadata.num_row_groups):
        table = file.read_row_group(index, columns)
        yield first, table
        first += len(table)
