"""Writing data sets: shards of bounded size first, the manifest last.

A folder that has shards and no manifest is a half-written set, and readers say so. `DatasetWriter` takes
rows one by one; a parallel writer calls `write_shard` from its tasks and `write_manifest` at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.data.card import card
from mimic3d_platform.data.schema import (
    CARD,
    COLUMNS,
    MANIFEST,
    ROW_GROUP_ROWS,
    Manifest,
    Shard,
    arrow_schema,
    fingerprint,
    shard_name,
)
from mimic3d_platform.errors import UserError

SHARD_BYTES = 64 * 2**20

# A note beside a shard of a parallel writer, until the manifest says it all.
_NOTE = ".json"


@dataclass(frozen=True)
class ShardRecord:
    """A written shard, with what the manifest sums up of it."""

    shard: Shard
    identities: list[str]
    cameras: dict[str, list[float]]


Row = dict[str, Any]


def write_shard(uri: str, index: int, rows: list[Row], columns: tuple[str, ...] = COLUMNS) -> ShardRecord:
    """Writes one Parquet shard into the folder `uri`, whole or not at all.

    Args:
        rows: a value for each of `columns`; `camera` as 25 numbers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows, schema=arrow_schema(columns))
    sink = pa.BufferOutputStream()
    compression = {
        name: "zstd" if name in ("camera.list.element", "depth", "identity") else "none"
        for name in _leaves(columns)
    }
    pq.write_table(
        table, sink, row_group_size=ROW_GROUP_ROWS, compression=compression, use_dictionary=["identity"]
    )
    data = sink.getvalue().to_pybytes()
    name = shard_name(index)
    storage.write_bytes(storage.join(uri, name), data)
    cameras = np.array([row["camera"] for row in rows], dtype=np.float32) if "camera" in columns else None
    return ShardRecord(
        Shard(name, len(rows), len(data), hashlib.sha256(data).hexdigest()),
        sorted({row["identity"] for row in rows}) if "identity" in columns else [],
        {} if cameras is None else camera_ranges(cameras),
    )


def _leaves(columns: tuple[str, ...]) -> list[str]:
    return ["camera.list.element" if name == "camera" else name for name in columns]


def camera_ranges(cameras: np.ndarray) -> dict[str, list[float]]:
    """The `Manifest.cameras` of (n, 25) labels."""
    position = cameras[:, :16].reshape(-1, 4, 4)[:, :3, 3].astype(np.float64)
    radius = np.linalg.norm(position, axis=1)
    values = {
        "radius": radius,
        "yaw": np.arctan2(position[:, 0], position[:, 2]),
        "pitch": np.arcsin(np.clip(position[:, 1] / np.maximum(radius, 1e-12), -1, 1)),
        "focal": cameras[:, 16].astype(np.float64),
    }
    return {name: [float(value.min()), float(value.max())] for name, value in values.items()}


def write_manifest(
    uri: str,
    records: list[ShardRecord],
    resolution: int,
    provenance: dict[str, Any],
    licences: Iterable[str] = (),
    columns: tuple[str, ...] = COLUMNS,
) -> Manifest:
    """Seals the folder: removes shards that are not in `records`, writes the card, and last the manifest."""
    shards = [record.shard for record in records]
    spans: dict[str, list[float]] = {}
    for record in records:
        for name, (low, high) in record.cameras.items():
            before = spans.get(name, [low, high])
            spans[name] = [min(low, before[0]), max(high, before[1])]
    manifest = Manifest(
        resolution=resolution,
        count=sum(shard.rows for shard in shards),
        identities=len({identity for record in records for identity in record.identities}),
        columns=list(columns),
        shards=shards,
        fingerprint=fingerprint(shards),
        cameras=spans,
        provenance=provenance,
        licences=sorted(set(licences)),
    )
    names = {shard.path for shard in shards}
    for found in storage.list_files(uri, ".parquet"):
        if found.rsplit("/", 1)[-1] not in names:
            storage.delete_tree(found)
    storage.write_bytes(storage.join(uri, CARD), card(manifest).encode())
    storage.write_bytes(storage.join(uri, MANIFEST), manifest.to_json())
    for note in storage.list_files(uri, ".parquet" + _NOTE):
        storage.delete_tree(note)
    return manifest


def refuse_or_clear(uri: str, overwrite: bool) -> None:
    """Makes sure that no complete set is at `uri`.

    With `overwrite` its manifest is deleted before anything else: what remains is seen as half-written.

    Raises:
        UserError: a complete set is there and `overwrite` is not set.
    """
    seal = storage.join(uri, MANIFEST)
    if storage.exists(seal):
        if not overwrite:
            raise UserError(f"{uri} already holds a data set: give another place, or say --overwrite")
        storage.delete_tree(seal)


class DatasetWriter:
    """Writes a data set row by row, as a context manager; leaving it without an error seals the set.

        with DatasetWriter(uri, 64, {"tool": "…"}) as writer:
            writer.write({"image": png, "camera": label, "identity": "car-3", "depth": raw, "mask": png})

    Raises:
        UserError: a complete set is at `uri` (unless `overwrite`), the place cannot be written, or no row
            came.
    """

    def __init__(
        self,
        uri: str,
        resolution: int,
        provenance: dict[str, Any],
        *,
        licences: Iterable[str] = (),
        columns: tuple[str, ...] = COLUMNS,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
    ) -> None:
        refuse_or_clear(uri, overwrite)
        self.uri, self.resolution, self.columns = uri, resolution, columns
        self._provenance, self._licences, self._limit = provenance, list(licences), shard_bytes
        self._rows: list[Row] = []
        self._held = 0
        self._records: list[ShardRecord] = []

    def write(self, row: Row) -> None:
        """Takes one row; a shard goes out when its values reach `shard_bytes`."""
        size = sum(len(value) for value in row.values() if isinstance(value, bytes))
        if self._rows and self._held + size > self._limit:
            self._flush()
        self._rows.append(row)
        self._held += size

    def close(self) -> Manifest:
        """Writes what is left, then the manifest."""
        self._flush()
        if not self._records:
            raise UserError(f"nothing to write to {self.uri}: the source has no image")
        return write_manifest(
            self.uri, self._records, self.resolution, self._provenance, self._licences, self.columns
        )

    def _flush(self) -> None:
        if self._rows:
            self._records.append(write_shard(self.uri, len(self._records), self._rows, self.columns))
            self._rows, self._held = [], 0

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()


def read_record(uri: str, index: int, plan: str) -> ShardRecord | None:
    """The record of a shard that an earlier run of the same `plan` left whole, else None."""
    name = shard_name(index)
    note = storage.join(uri, name + _NOTE)
    if not storage.exists(note) or not storage.exists(storage.join(uri, name)):
        return None
    try:
        content = json.loads(storage.read_bytes(note))
        record = ShardRecord(Shard(**content["shard"]), content["identities"], content["cameras"])
        same = content["plan"] == plan
    except (ValueError, KeyError, TypeError):
        return None
    if not same:
        return None
    data = storage.read_bytes(storage.join(uri, name))
    same = len(data) == record.shard.bytes and hashlib.sha256(data).hexdigest() == record.shard.sha256
    return record if same else None


def write_record(uri: str, record: ShardRecord, plan: str) -> None:
    """Notes beside a shard that it is whole, and of which plan."""
    note = storage.join(uri, record.shard.path + _NOTE)
    storage.write_bytes(note, json.dumps({"plan": plan, **asdict(record)}).encode())
