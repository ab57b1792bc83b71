"""A shard where the set lies: read whole, held to the manifest, taken apart."""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimic3d_platform import storage
from mimic3d_platform.data.format.manifest import AGAIN, CAMERA_SIZE, Shard
from mimic3d_platform.data.stream.cache_files import write_rows
from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

# A transfer may be spoilt on its way; what is spoilt three times is spoilt where it lies.
_TRANSFERS = 3


def verified_bytes(place: str, shard: Shard, *, patience_s: float | None = None) -> bytes:
    """A shard's file, as the manifest describes it.

    Args:
        patience_s: how long transient errors are retried; the settings' if not given.
    Raises:
        UserError: it is missing, out of reach for longer than the patience, or another.
    """
    for attempt in range(_TRANSFERS):
        time.sleep(attempt * 0.2)
        data = storage.read_bytes(place, patience_s=patience_s)
        if len(data) != shard.bytes:
            problem = f"has {len(data)} bytes and the manifest says {shard.bytes}"
        elif hashlib.sha256(data).hexdigest() != shard.sha256:
            problem = "is not the file that the manifest describes (SHA-256 differs)"
        else:
            return data
        log.warning("%s %s, in transfer %d of %d", place, problem, attempt + 1, _TRANSFERS)
    raise UserError(f"{place} {problem}: it is damaged or was replaced; {AGAIN}")


def unpack(file: BinaryIO, place: str, shard: Shard, data: bytes) -> None:
    """Writes a Parquet shard's images and cameras as a `RowFile`."""
    # Nothing here and below that imports pandas (read_table, to_numpy) or pyarrow.compute (cast, flatten):
    # that is half a second of each loader's start.
    with storage.translate_errors(place, "read"):
        table = pq.ParquetFile(pa.BufferReader(data)).read(columns=["image", "camera"], use_threads=False)
    if table.num_rows != shard.rows:
        raise UserError(f"{place} has {table.num_rows} rows and the manifest says {shard.rows}: {AGAIN}")
    views = [view for chunk in table.column("image").chunks for view in _views(chunk)]
    write_rows(file, views, camera_array(table))


def _views(images: pa.Array) -> Iterator[memoryview]:
    """Each value of a binary array, without a copy."""
    _, offsets, data = images.buffers()
    width = np.int64 if pa.types.is_large_binary(images.type) else np.int32
    places = np.frombuffer(offsets, dtype=width)[images.offset : images.offset + len(images) + 1].tolist()
    content = memoryview(data or b"")
    return (content[start:stop] for start, stop in itertools.pairwise(places))


def camera_array(table: pa.Table) -> np.ndarray:
    """(rows, 25) float32 from a table's `camera` column."""
    chunks = [
        np.from_dlpack(chunk.values).reshape(-1, CAMERA_SIZE)[chunk.offset :][: len(chunk)]
        for chunk in table.column("camera").chunks
    ]
    return np.concatenate(chunks)
