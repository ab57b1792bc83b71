"""Writing data sets: shards of bounded size first, the manifest last.

A folder that has shards and no manifest is a half-written set, and readers say so. Where a set is replaced,
the new shards bear names of their own and the old set stays whole until the new manifest takes the old one's
place in one step; then the old shards go. `DatasetWriter` takes rows one by one; a parallel writer calls
`open_layout`, then `write_shard` from its tasks, and `write_manifest` at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.data.format.camera_labels import yaw_pitch_radius
from mimic3d_platform.data.format.dataset_card import card
from mimic3d_platform.data.format.manifest import (
    CARD,
    COLUMNS,
    MANIFEST,
    Manifest,
    Shard,
    arrow_schema,
    fingerprint,
    row_group_rows,
    shard_name,
)
from mimic3d_platform.errors import UserError

SHARD_BYTES = 64 * 2**20

# A note beside a shard of a parallel writer, until the manifest says it all.
_NOTE = ".json"
_OURS = re.compile(r"part-(?:[0-9a-f]{8}-)?\d{5,}\.parquet(?:\.json)?")


# Columns of many bytes a row: they are compressed already, or nobody looks for their least and greatest.
_LARGE = ("image", "depth", "mask")

Row = dict[str, Any]


@dataclass(frozen=True)
class ShardRecord:
    """A written shard, with what the manifest sums up of it; `left_out` names images that were no use."""

    shard: Shard
    identities: list[str]
    cameras: dict[str, list[float]]
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """Where and how the shards of one set are written.

    Attributes:
        resolution: R, pixels; images are R×R.
        extras: the Arrow type's name of each column of the user's own.
        generation: what tells the shards' names from those of the set that is there; empty where none is.
    """

    uri: str
    resolution: int
    columns: tuple[str, ...] = COLUMNS
    extras: Mapping[str, str] = field(default_factory=dict)
    generation: str = ""

    def shard_uri(self, index: int) -> str:
        return storage.join(self.uri, shard_name(index, self.generation))


def open_layout(
    uri: str,
    resolution: int,
    columns: tuple[str, ...] = COLUMNS,
    *,
    extras: Mapping[str, str] | None = None,
    overwrite: bool = False,
    plan: str | None = None,
) -> Layout:
    """The layout of a set to be written at `uri`; nothing that is there is touched.

    Args:
        plan: a digest of all that the rows depend on: a run of the same plan that was stopped is taken up.
            Without one the run is new.
    Raises:
        UserError: a complete set is there and `overwrite` is not set, or files that are of no set.
    """
    seal = storage.join(uri, MANIFEST)
    generation = ""
    if storage.exists(seal):
        if not overwrite:
            raise UserError(f"{uri} already holds a data set: give another place, or say --overwrite")
        before = storage.read_bytes(seal)
        token = secrets.token_bytes(8) if plan is None else plan.encode()
        generation = hashlib.sha256(before + token).hexdigest()[:8]
    elif strangers := [name for name in _names(uri) if not _OURS.fullmatch(name) and name != CARD]:
        raise UserError(f"{uri} holds other files ({strangers[0]}) and no data set: give an empty folder")
    storage.ensure_bucket(uri)
    # Tasks run in folders of their own: a path from here would be another one there.
    uri = uri if storage.is_s3(uri) else str(storage.local_path(uri))
    return Layout(uri, resolution, columns, dict(extras or {}), generation)


def write_shard(layout: Layout, index: int, rows: list[Row], left_out: Iterable[str] = ()) -> ShardRecord:
    """Writes one Parquet shard, whole or not at all.

    Args:
        rows: a value for each of the layout's columns; `camera` as 25 numbers.
        left_out: names of images that should have been there too, for the record.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = layout.columns
    table = pa.Table.from_pylist(rows, schema=arrow_schema(columns, layout.extras))
    sink = pa.BufferOutputStream()
    leaves = {_leaf(name): "none" if name in ("image", "mask") else "zstd" for name in columns}
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_rows(layout.resolution),
        compression=leaves,
        use_dictionary=["identity"],
        write_statistics=[_leaf(name) for name in columns if name not in _LARGE],
    )
    data = sink.getvalue()
    name = shard_name(index, layout.generation)
    storage.write_bytes(storage.join(layout.uri, name), data)
    posed = bool(rows) and "camera" in columns
    return ShardRecord(
        Shard(name, len(rows), len(data), hashlib.sha256(data).hexdigest()),
        sorted({row["identity"] for row in rows}) if "identity" in columns else [],
        camera_ranges(np.array([row["camera"] for row in rows], dtype=np.float32)) if posed else {},
        list(left_out),
    )


def _leaf(column: str) -> str:
    return f"{column}.list.element" if column in ("camera", "label") else column


def camera_ranges(cameras: np.ndarray) -> dict[str, list[float]]:
    """The `Manifest.cameras` of (n, 25) labels."""
    yaw, pitch, radius = yaw_pitch_radius(cameras)
    values = {"radius": radius, "yaw": yaw, "pitch": pitch, "focal": cameras[:, 16]}
    return {name: [float(value.min()), float(value.max())] for name, value in values.items()}


def merge_ranges(parts: Iterable[dict[str, list[float]]]) -> dict[str, list[float]]:
    """The ranges of all parts together."""
    spans: dict[str, list[float]] = {}
    for part in parts:
        for name, (low, high) in part.items():
            before = spans.get(name, [low, high])
            spans[name] = [min(low, before[0]), max(high, before[1])]
    return spans


def write_manifest(
    layout: Layout,
    records: list[ShardRecord],
    provenance: dict[str, Any],
    licences: Iterable[str] = (),
) -> Manifest:
    """Seals the set: writes the card, then the manifest, then removes what is not of this set."""
    shards = [record.shard for record in records]
    manifest = Manifest(
        resolution=layout.resolution,
        count=sum(shard.rows for shard in shards),
        identities=len({identity for record in records for identity in record.identities}),
        columns=list(layout.columns),
        shards=shards,
        fingerprint=fingerprint(shards),
        cameras=merge_ranges(record.cameras for record in records),
        provenance=provenance,
        licences=sorted(set(licences)),
        row_group_rows=row_group_rows(layout.resolution),
    )
    storage.write_bytes(storage.join(layout.uri, CARD), card(manifest).encode())
    storage.write_bytes(storage.join(layout.uri, MANIFEST), manifest.to_json())
    sweep(layout.uri, manifest)
    return manifest


def sweep(uri: str, manifest: Manifest) -> None:
    """Removes shards that are not of the sealed set, and the notes of parallel writers; nothing else."""
    for name in stray_shards(uri, manifest):
        storage.delete_tree(storage.join(uri, name))


def stray_shards(uri: str, manifest: Manifest) -> list[str]:
    """Names of shards and notes in the folder of a sealed set that are not of it."""
    names = {shard.path for shard in manifest.shards}
    return [name for name in _names(uri) if _OURS.fullmatch(name) and name not in names]


def _names(uri: str) -> list[str]:
    """The files below a folder, relative to it."""
    return [found[len(storage.join(uri)) :].lstrip("/") for found in storage.list_files(uri)]


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
        extras: Mapping[str, str] | None = None,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
    ) -> None:
        self.layout = open_layout(uri, resolution, columns, extras=extras, overwrite=overwrite)
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
            raise UserError(f"nothing to write to {self.layout.uri}: the source has no image")
        return write_manifest(self.layout, self._records, self._provenance, self._licences)

    def _flush(self) -> None:
        if self._rows:
            self._records.append(write_shard(self.layout, len(self._records), self._rows))
            self._rows, self._held = [], 0

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()


def read_record(layout: Layout, index: int, plan: str) -> ShardRecord | None:
    """The record of a shard that an earlier run of the same `plan` left whole, else None."""
    place = layout.shard_uri(index)
    note = place + _NOTE
    if not storage.exists(note) or not storage.exists(place):
        return None
    try:
        content = json.loads(storage.read_bytes(note))
        same = content.pop("plan") == plan
        record = ShardRecord(**{**content, "shard": Shard(**content["shard"])})
    except (ValueError, KeyError, TypeError):
        return None
    if not same:
        return None
    data = storage.read_bytes(place)
    same = len(data) == record.shard.bytes and hashlib.sha256(data).hexdigest() == record.shard.sha256
    return record if same else None


def write_record(layout: Layout, record: ShardRecord, plan: str) -> None:
    """Notes beside a shard that it is whole, and of which plan."""
    note = storage.join(layout.uri, record.shard.path + _NOTE)
    storage.write_bytes(note, json.dumps({"plan": plan, **asdict(record)}).encode())
