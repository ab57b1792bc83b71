"""Writing the files of a data set: shards of bounded size first, the manifest last.

A folder with shards and no manifest is a half-written set, and readers say so. Where a set is replaced, the
new shards have other names, and the old set stays complete until the new manifest replaces the old one in one
step; then the old shards are deleted. A parallel writer calls `open_layout`, then `write_shard` in its tasks,
and `write_manifest` at the end; `dataset_writer.DatasetWriter` does all three for rows that come one by one.

A task that may run again records each shard that it wrote (`write_record`) and takes those that an earlier
run of the same plan left (`read_record`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimic3d_platform import storage
from mimic3d_platform.data.format.camera_labels import yaw_pitch_radius
from mimic3d_platform.data.format.manifest import (
    COLUMNS,
    FORMER_CARD,
    FORMER_MANIFEST,
    MANIFEST,
    Manifest,
    Shard,
    fingerprint,
)
from mimic3d_platform.data.format.manifest_file import find_manifest, manifest_file, read_manifest
from mimic3d_platform.data.format.parquet_schema import (
    arrow_schema,
    is_shard_name,
    row_group_rows,
    shard_name,
)
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.digests import sha256

SHARD_BYTES = 64 * 2**20

_RECORD_SUFFIX = ".json"

# Columns of large binary values, for which minimum and maximum are of no use.
_LARGE = ("image", "depth", "mask")

# A row: a value for each column. User columns may hold any type that Arrow names.
Row = dict[str, Any]


@dataclass(frozen=True)
class ShardRecord:
    """A written shard, and the part of the manifest that depends on its rows.

    Attributes:
        identities: the different objects of the rows.
        cameras: as `Manifest.cameras`, of the rows.
        left_out: names of images that could not be used.
    """

    shard: Shard
    identities: list[str]
    cameras: dict[str, list[float]]
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """The destination and format of one data set's shards.

    Attributes:
        resolution: R, pixels; images are R×R.
        extras: the Arrow type's name of each of the user's own columns.
        generation: distinguishes the shards' names from those of the set that is replaced; else empty.
    """

    uri: str
    resolution: int
    columns: tuple[str, ...] = COLUMNS
    extras: Mapping[str, str] = field(default_factory=dict)
    generation: str = ""

    def shard_uri(self, index: int) -> str:
        """The URI of a shard's file."""
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
    """The layout of a data set to be written at `uri`; no existing file is changed.

    Args:
        plan: a digest of everything that the rows depend on. A run of the same plan resumes an interrupted
            one; without a plan the run starts anew.
    Raises:
        UserError: a complete data set is there and `overwrite` is not set; or other files are there.
    """
    generation = ""
    if (manifest := find_manifest(uri)) is not None:
        if not overwrite:
            raise UserError(f"{uri} already holds a data set: give another folder, or use --overwrite")
        replaced = storage.read_bytes(manifest)
        token = secrets.token_bytes(8) if plan is None else plan.encode()
        generation = sha256(replaced + token)[:8]
    elif others := [name for name in _file_names(uri) if not _is_ours(name) and name != FORMER_CARD]:
        raise UserError(f"{uri} holds other files ({others[0]}) and no data set: give an empty folder")
    storage.ensure_bucket(uri)
    # Ray tasks run in working directories of their own, where a relative path is another one.
    uri = storage.absolute(uri)
    return Layout(uri, resolution, columns, dict(extras or {}), generation)


def write_shard(layout: Layout, index: int, rows: list[Row], left_out: Iterable[str] = ()) -> ShardRecord:
    """Writes one Parquet shard; a reader sees the whole file or none.

    Args:
        rows: a value for each of the layout's columns; `camera` as 25 numbers.
        left_out: names of images that could not be used, for the record.
    """
    columns = layout.columns
    table = pa.Table.from_pylist(rows, schema=arrow_schema(columns, layout.extras))
    sink = pa.BufferOutputStream()
    compression = {_leaf(name): "none" if name in ("image", "mask") else "zstd" for name in columns}
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_rows(layout.resolution),
        compression=compression,
        use_dictionary=["identity"],
        write_statistics=[_leaf(name) for name in columns if name not in _LARGE],
    )
    data = sink.getvalue().to_pybytes()
    name = shard_name(index, layout.generation)
    storage.write_bytes(storage.join(layout.uri, name), data)
    has_cameras = bool(rows) and "camera" in columns
    return ShardRecord(
        Shard(name, len(rows), len(data), sha256(data)),
        sorted({row["identity"] for row in rows}) if "identity" in columns else [],
        camera_ranges(np.array([row["camera"] for row in rows], dtype=np.float32)) if has_cameras else {},
        list(left_out),
    )


def _leaf(column: str) -> str:
    """The name of a column's values in Parquet."""
    return f"{column}.list.element" if column in ("camera", "label") else column


def camera_ranges(cameras: np.ndarray) -> dict[str, list[float]]:
    """The `Manifest.cameras` of (n, 25) labels."""
    yaw, pitch, radius = yaw_pitch_radius(cameras)
    values = {"radius": radius, "yaw": yaw, "pitch": pitch, "focal": cameras[:, 16]}
    return {name: [float(value.min()), float(value.max())] for name, value in values.items()}


def merge_ranges(parts: Iterable[dict[str, list[float]]]) -> dict[str, list[float]]:
    """The `Manifest.cameras` of all parts together."""
    merged: dict[str, list[float]] = {}
    for part in parts:
        for name, (low, high) in part.items():
            before = merged.get(name, [low, high])
            merged[name] = [min(low, before[0]), max(high, before[1])]
    return merged


def write_manifest(
    layout: Layout,
    records: list[ShardRecord],
    provenance: dict[str, Any],
    licences: Iterable[str] = (),
) -> Manifest:
    """Completes a data set: writes its manifest, then deletes the files of the set that it replaces."""
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
    schema = arrow_schema(layout.columns, layout.extras)
    storage.write_bytes(storage.join(layout.uri, MANIFEST), manifest_file(manifest, schema))
    if storage.exists(storage.join(layout.uri, FORMER_MANIFEST)):
        for name in (FORMER_MANIFEST, FORMER_CARD):
            storage.delete_tree(storage.join(layout.uri, name))
    delete_stray_shards(layout.uri, manifest)
    return manifest


def complete_set(uri: str, plan: str) -> Manifest | None:
    """The manifest of the data set at `uri` if a run of the same `plan` made it, else None.

    Files that an interrupted writer has left beside it are deleted.
    """
    manifest = read_manifest(uri)
    if manifest is None or manifest.provenance.get("plan") != plan:
        return None
    delete_stray_shards(uri, manifest)
    return manifest


def delete_stray_shards(uri: str, manifest: Manifest) -> None:
    """Deletes the files that `stray_shards` names, and nothing else."""
    for name in stray_shards(uri, manifest):
        storage.delete_tree(storage.join(uri, name))


def stray_shards(uri: str, manifest: Manifest) -> list[str]:
    """Names of shards in the folder that the manifest does not list, and of the shards' records."""
    names = {shard.path for shard in manifest.shards}
    return [name for name in _file_names(uri) if _is_ours(name) and name not in names]


def _is_ours(name: str) -> bool:
    """True for the names of shards and of their records."""
    return is_shard_name(name.removesuffix(_RECORD_SUFFIX))


def _file_names(uri: str) -> list[str]:
    """The files below a folder, relative to it."""
    return [file[len(storage.join(uri)) :].lstrip("/") for file in storage.list_files(uri)]


def read_record(layout: Layout, index: int, plan: str) -> ShardRecord | None:
    """The record of a shard that an earlier run of the same `plan` completed, else None."""
    place = layout.shard_uri(index)
    record_place = place + _RECORD_SUFFIX
    if not storage.exists(record_place) or not storage.exists(place):
        return None
    try:
        content = json.loads(storage.read_bytes(record_place))
        same_plan = content.pop("plan") == plan
        record = ShardRecord(**{**content, "shard": Shard(**content["shard"])})
    except (ValueError, KeyError, TypeError):
        return None
    if not same_plan:
        return None
    data = storage.read_bytes(place)
    complete = len(data) == record.shard.bytes and sha256(data) == record.shard.sha256
    return record if complete else None


def write_record(layout: Layout, record: ShardRecord, plan: str) -> None:
    """Records beside a shard that it is complete, and of which plan."""
    place = storage.join(layout.uri, record.shard.path + _RECORD_SUFFIX)
    storage.write_bytes(place, json.dumps({"plan": plan, **asdict(record)}).encode())
