"""Unpacking a Parquet shard into the form that the local cache keeps.

A loader process that has to fetch a shard imports this module and PyArrow with it. Nothing here may import
pandas (`read_table`, `to_numpy`) or `pyarrow.compute` (`cast`, `flatten`): they take half a second.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimic3d_platform import storage
from mimic3d_platform.data.format.manifest import REWRITE, Shard
from mimic3d_platform.data.format.read_shards import camera_array
from mimic3d_platform.data.stream.cache_files import write_rows
from mimic3d_platform.errors import UserError


def unpack_shard(file: BinaryIO, place: str, shard: Shard, data: bytes) -> None:
    """Writes the images and cameras of a Parquet shard as a `RowFile`.

    Args:
        file: where to write.
        place: the shard's URI, for error messages.
        data: the shard's content.
    Raises:
        UserError: the content is not Parquet, or has another number of rows than the manifest says.
    """
    with storage.translate_errors(place, "read"):
        table = pq.ParquetFile(pa.BufferReader(data)).read(columns=["image", "camera"], use_threads=False)
    if table.num_rows != shard.rows:
        raise UserError(f"{place} has {table.num_rows} rows and the manifest says {shard.rows}: {REWRITE}")
    images = [image for chunk in table.column("image").chunks for image in _values(chunk)]
    write_rows(file, images, camera_array(table))


def _values(images: pa.Array) -> Iterator[memoryview]:
    """Each value of a binary array, without a copy."""
    _, offsets, data = images.buffers()
    width = np.int64 if pa.types.is_large_binary(images.type) else np.int32
    places = np.frombuffer(offsets, dtype=width)[images.offset : images.offset + len(images) + 1].tolist()
    content = memoryview(data or b"")
    return (content[start:stop] for start, stop in itertools.pairwise(places))
