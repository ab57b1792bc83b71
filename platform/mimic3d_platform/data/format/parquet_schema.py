"""The Parquet schema of a data set, its row groups and the names of its shards."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow as pa

from mimic3d_platform.data.format.manifest import CAMERA_SIZE, COLUMNS, MOST_ROW_GROUP_ROWS

# Reading one row fetches a row group: the decoded images of a row group take at most this many bytes.
_ROW_GROUP_BYTES = 16 * 2**20

_SHARD_NAME = re.compile(r"part-(?:[0-9a-f]{8}-)?\d{5,}\.parquet")

_TYPES = {
    "image": pa.binary(),
    "camera": pa.list_(pa.float32(), CAMERA_SIZE),
    "identity": pa.string(),
    "depth": pa.binary(),
    "mask": pa.binary(),
    "weight": pa.float32(),
    "name": pa.string(),
    "label": pa.list_(pa.float64(), CAMERA_SIZE),
}


def arrow_schema(columns: tuple[str, ...] = COLUMNS, extras: Mapping[str, str] | None = None) -> pa.Schema:
    """The Arrow schema of a data set with these columns.

    Args:
        extras: the Arrow type's name (`string`, `double`, `int64`, `binary` …) of each of the user's columns.
    """
    own = {name: pa.type_for_alias(kind) for name, kind in (extras or {}).items()}
    return pa.schema(
        [
            pa.field(name, _TYPES[name], nullable=False) if name in _TYPES else pa.field(name, own[name])
            for name in columns
        ]
    )


def row_group_rows(resolution: int) -> int:
    """Rows of a row group for images of R×R: a power of two, 256 for small images."""
    fit = max(_ROW_GROUP_BYTES // (3 * resolution**2), 1)
    return min(1 << (fit.bit_length() - 1), MOST_ROW_GROUP_ROWS)


def shard_name(index: int, generation: str = "") -> str:
    """`part-00000.parquet`, or with a generation `part-1a2b3c4d-00000.parquet`."""
    return f"part-{generation}{'-' if generation else ''}{index:05d}.parquet"


def is_shard_name(name: str) -> bool:
    """True for names that `shard_name` makes. Other programs may use them too."""
    return bool(_SHARD_NAME.fullmatch(name))
