"""Verification of a data set: checksums, images and cameras of all rows: `mimic3d data verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimic3d_platform import storage
from mimic3d_platform.cluster.tasks import run_pieces
from mimic3d_platform.data.format.camera_labels import label_faults
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.image_files import open_image
from mimic3d_platform.data.format.manifest import CAMERA_SIZE, Manifest
from mimic3d_platform.data.format.parquet_schema import arrow_schema
from mimic3d_platform.data.format.read_shards import open_shard
from mimic3d_platform.data.format.write_shards import camera_ranges, merge_ranges, stray_shards
from mimic3d_platform.errors import UserError

# A shard of noise has a problem in every row: at most this many are listed, the others are counted.
_MOST_LISTED = 20

_REQUIRED_VALUES = ("image", "camera", "identity", "depth", "mask", "weight", "name", "label")


@dataclass(frozen=True)
class Problem:
    """A problem of a row of a shard (counted from 0), of a whole shard, or, without `shard`, of the set."""

    what: str
    shard: str = ""
    row: int | None = None

    def __str__(self) -> str:
        place = self.shard if self.row is None else f"row {self.row} of {self.shard}"
        return f"{place}: {self.what}" if place else self.what


@dataclass(frozen=True)
class Report:
    """The result of verifying some shards.

    Attributes:
        rows: number of rows checked.
        more: number of problems beyond those listed.
        cameras: as `Manifest.cameras`, of the rows.
    """

    rows: int
    problems: list[Problem]
    more: int
    cameras: dict[str, list[float]]


def verify_dataset(
    uri: str, *, here: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Report:
    """Checks every shard and row of the data set at `uri`, as Ray tasks or in this process.

    Args:
        here: check in this process instead of on Ray.
        on_progress: called with the rows checked and all rows.
    Raises:
        UserError: as `open_dataset`; storage or Ray cannot be reached.
    """
    uri = storage.absolute(uri)
    manifest = open_dataset(uri)
    done = 0

    def count(report: Report) -> None:
        nonlocal done
        done += report.rows
        if on_progress is not None:
            on_progress(done, manifest.count)

    reports = run_pieces(verify_shard, len(manifest.shards), uri, manifest, on_result=count, here=here)
    problems = [problem for report in reports for problem in report.problems]
    ranges = merge_ranges(report.cameras for report in reports)
    if not problems and ranges != manifest.cameras:
        problems.append(Problem("the manifest's camera ranges are not those of the rows"))
    problems += [
        Problem("the manifest does not list this file; delete it", name)
        for name in stray_shards(uri, manifest)
    ]
    return Report(done, problems, sum(report.more for report in reports), ranges)


def verify_shard(index: int, uri: str, manifest: Manifest) -> Report:
    """Checks one shard: its checksum, its columns and row groups, and each row."""
    shard = manifest.shards[index]
    place = storage.join(uri, shard.path)
    if not storage.exists(place):  # raises where storage cannot be reached
        return Report(0, [Problem("the file is missing", shard.path)], 0, {})
    try:
        file = open_shard(uri, shard)
    except UserError as error:
        return Report(0, [Problem(str(error).removeprefix(f"{place} "), shard.path)], 0, {})
    problems = [Problem(what, shard.path) for what in _schema_faults(file, manifest)]
    if problems:
        return Report(shard.rows, problems, 0, {})
    ranges: list[dict[str, list[float]]] = []
    more, first = 0, 0
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group)
        for row, what in _row_faults(table, manifest):
            if len(problems) < _MOST_LISTED:
                problems.append(Problem(what, shard.path, first + row))
            else:
                more += 1
        if "camera" in manifest.columns:
            ranges.append(camera_ranges(_labels(table, "camera")))
        first += len(table)
    return Report(shard.rows, problems, more, merge_ranges(ranges))


def _schema_faults(file: pq.ParquetFile, manifest: Manifest) -> Iterator[str]:
    """Faults of a shard's columns and row groups."""
    schema = file.schema_arrow
    if schema.names != manifest.columns:
        found, listed = ", ".join(schema.names), ", ".join(manifest.columns)
        yield f"it has the columns {found} and the manifest says {listed}"
        return
    for field in arrow_schema(("image", "camera", "identity", "depth", "mask", "weight")):
        if field.name in schema.names and schema.field(field.name).type != field.type:
            yield f"its column {field.name} is {schema.field(field.name).type} and not {field.type}"
    most, groups = manifest.row_group_rows, file.metadata.num_row_groups
    sizes = [file.metadata.row_group(index).num_rows for index in range(groups)]
    if any(size != most for size in sizes[:-1]) or not 0 < sizes[-1] <= most:
        yield f"its row groups do not have {most} rows"


def _row_faults(table: pa.Table, manifest: Manifest) -> Iterator[tuple[int, str]]:
    """Faults of the rows of a row group, each with the row's index in the group."""
    columns = table.column_names
    if nulls := [name for name in columns if name in _REQUIRED_VALUES and table[name].null_count]:
        yield 0, f"the column {nulls[0]} has empty values"
        return
    for name in ("image", "mask"):
        if name in columns:
            for row, data in enumerate(table[name]):
                if what := _image_fault(data.as_py(), name, manifest.resolution):
                    yield row, what
    if "camera" in columns:
        yield from _camera_faults(table)
    if "depth" in columns:
        yield from _depth_faults(table, manifest.resolution)
    if "weight" in columns:
        weights = table["weight"].to_numpy()
        wrong = ~np.isfinite(weights) | (weights < 0)
        yield from (
            (int(row), f"its weight is {weights[row]:g}, not a number of 0 or more")
            for row in np.flatnonzero(wrong)
        )


def _image_fault(data: bytes, column: str, resolution: int) -> str | None:
    try:
        image = open_image(data, f"its {column}")
    except UserError as error:
        return str(error)
    width, height = image.size
    if (width, height) != (resolution, resolution):
        return f"its {column} is {width}×{height} and not {resolution}×{resolution}"
    return None


def _camera_faults(table: pa.Table) -> Iterator[tuple[int, str]]:
    cameras = _labels(table, "camera")
    for row, what in label_faults(cameras).items():
        yield row, f"its camera has {what}"
    if "label" in table.column_names:
        differ = (_labels(table, "label").astype(np.float32) != cameras).any(axis=1)
        yield from ((int(row), "its camera and its label differ") for row in np.flatnonzero(differ))


def _depth_faults(table: pa.Table, resolution: int) -> Iterator[tuple[int, str]]:
    expected = 4 * resolution**2
    for row, value in enumerate(table["depth"]):
        data = value.as_py()
        if len(data) != expected:
            yield row, f"its depth has {len(data)} bytes and not {expected}"
        elif np.isnan(np.frombuffer(data, "<f4")).any():
            yield row, "its depth holds NaN"


def _labels(table: pa.Table, column: str) -> np.ndarray:
    """(rows, 25): the column `camera` or `label`."""
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, CAMERA_SIZE)
