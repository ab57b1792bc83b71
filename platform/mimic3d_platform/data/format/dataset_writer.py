"""Writing a data set row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from mimic3d_platform.data.format.manifest import COLUMNS, Manifest
from mimic3d_platform.data.format.write_shards import (
    SHARD_BYTES,
    Row,
    ShardRecord,
    open_layout,
    write_manifest,
    write_shard,
)
from mimic3d_platform.errors import UserError


class DatasetWriter:
    """Writes a data set row by row, as a context manager; leaving it without an error completes the set.

        with DatasetWriter(uri, 64, {"tool": "…"}) as writer:
            writer.write({"image": png, "camera": label, "identity": "car-3", "depth": raw, "mask": png})

    Args:
        resolution: R, pixels; images are R×R.
        provenance: how the set was made, for the manifest.
        licences: of the images, for the manifest.
        columns: the names of all columns.
        extras: the Arrow type's name of each of the user's own columns.
        shard_bytes: bytes of binary values at which a shard is written.
        overwrite: replace a complete data set at `uri`.
    Raises:
        UserError: a complete data set is at `uri` (unless `overwrite`), storage cannot be written, or there
            was no row.
    """

    def __init__(
        self,
        uri: str,
        resolution: int,
        provenance: dict[str, Any],
        *,
        licences: Iterable[str] = (),
        columns: tuple[str, ...] = COLUMNS,
        extras: Mapping[str, str] | None = None,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
    ) -> None:
        self.layout = open_layout(uri, resolution, columns, extras=extras, overwrite=overwrite)
        self._provenance, self._licences, self._shard_bytes = provenance, list(licences), shard_bytes
        self._rows: list[Row] = []
        self._bytes = 0
        self._records: list[ShardRecord] = []

    def write(self, row: Row) -> None:
        """Adds one row; a shard is written when its binary values reach `shard_bytes`."""
        size = sum(len(value) for value in row.values() if isinstance(value, bytes))
        if self._rows and self._bytes + size > self._shard_bytes:
            self._flush()
        self._rows.append(row)
        self._bytes += size

    def close(self) -> Manifest:
        """Writes the last shard, then the manifest."""
        self._flush()
        if not self._records:
            raise UserError(f"nothing to write to {self.layout.uri}: the source has no image")
        return write_manifest(self.layout, self._records, self._provenance, self._licences)

    def _flush(self) -> None:
        if self._rows:
            self._records.append(write_shard(self.layout, len(self._records), self._rows))
            self._rows, self._bytes = [], 0

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
