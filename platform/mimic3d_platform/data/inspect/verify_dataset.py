"""Every byte and every row of a data set looked at: checksums, images, cameras; what is wrong is placed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.cluster.tasks import run_pieces
from mimic3d_platform.data.format.camera_labels import label_faults
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.manifest import CAMERA_SIZE, Manifest, arrow_schema
from mimic3d_platform.data.format.read_shards import open_shard
from mimic3d_platform.data.format.write_shards import camera_ranges, merge_ranges, stray_shards
from mimic3d_platform.data.ingest.image_edits import open_picture
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

# A shard of noise has a problem in every row: so many are told, the rest are counted.
_TOLD = 20


@dataclass(frozen=True)
class Problem:
    """Something wrong with a row of a shard (from 0), with a shard, or, where `shard` is empty, the set."""

    what: str
    shard: str = ""
    row: int | None = None

    def __str__(self) -> str:
        place = self.shard if self.row is None else f"row {self.row} of {self.shard}"
        return f"{place}: {self.what}" if place else self.what


@dataclass(frozen=True)
class Report:
    """What was found in some shards.

    Attributes:
        rows: rows looked at.
        more: problems beyond those listed.
        cameras: as `Manifest.cameras`, of the rows.
    """

    rows: int
    problems: list[Problem]
    more: int
    cameras: dict[str, list[float]]


def verify_dataset(
    uri: str, *, here: bool = False, on_progress: Callable[[int, int], None] | None = None
) -> Report:
    """Looks at everything in the data set at `uri`, as Ray tasks or, with `here`, in this process.

    Raises:
        UserError: as `open_dataset`; storage or Ray are out of reach.
    """
    uri = uri if storage.is_s3(uri) else str(storage.local_path(uri))
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
        Problem("this file is not of the set; delete it", name) for name in stray_shards(uri, manifest)
    ]
    return Report(done, problems, sum(report.more for report in reports), ranges)


def verify_shard(index: int, uri: str, manifest: Manifest) -> Report:
    """Looks at one shard."""
    shard = manifest.shards[index]
    place = storage.join(uri, shard.path)
    if not storage.exists(place):  # What is out of reach, and not missing, raises.
        return Report(0, [Problem("the file is missing", shard.path)], 0, {})
    try:
        file = open_shard(uri, shard)
    except UserError as error:
        return Report(0, [Problem(str(error).removeprefix(f"{place} "), shard.path)], 0, {})
    problems = [Problem(what, shard.path) for what in _form_faults(file, manifest)]
    if problems:
        return Report(shard.rows, problems, 0, {})
    spans: list[dict[str, list[float]]] = []
    more, first = 0, 0
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group)
        for row, what in _row_faults(table, manifest):
            if len(problems) < _TOLD:
                problems.append(Problem(what, shard.path, first + row))
            else:
                more += 1
        if "camera" in manifest.columns:
            spans.append(camera_ranges(_numbers(table, "camera")))
        first += len(table)
    return Report(shard.rows, problems, more, merge_ranges(spans))


def _form_faults(file: pyarrow.parquet.ParquetFile, manifest: Manifest) -> Iterator[str]:
    """What is wrong with a shard's columns and row groups."""
    schema, known = (
        file.schema_arrow,
        arrow_schema(("image", "camera", "identity", "depth", "mask", "weight")),
    )
    if schema.names != manifest.columns:
        found, told = ", ".join(schema.names), ", ".join(manifest.columns)
        yield f"it has the columns {found} and the manifest says {told}"
        return
    for field in known:
        if field.name in schema.names and schema.field(field.name).type != field.type:
            yield f"its column {field.name} is {schema.field(field.name).type} and not {field.type}"
    most, groups = manifest.row_group_rows, file.metadata.num_row_groups
    sizes = [file.metadata.row_group(index).num_rows for index in range(groups)]
    if any(size != most for size in sizes[:-1]) or not 0 < sizes[-1] <= most:
        yield f"its row groups are not of {most} rows"


def _row_faults(table: pyarrow.Table, manifest: Manifest) -> Iterator[tuple[int, str]]:
    """What is wrong with the rows of a row group, by their number in it."""
    if nulls := [name for name in table.column_names if name in _WHOLE and table[name].null_count]:
        yield 0, f"the column {nulls[0]} has empty values"
        return
    for name in ("image", "mask"):
        if name not in table.column_names:
            continue
        for row, data in enumerate(table[name]):
            if what := _picture_fault(data.as_py(), name, manifest.resolution):
                yield row, what
    if "camera" in table.column_names:
        cameras = _numbers(table, "camera")
        for row, what in label_faults(cameras).items():
            yield row, f"its camera has {what}"
        if "label" in table.column_names:
            differ = (_numbers(table, "label").astype(np.float32) != cameras).any(axis=1)
            yield from ((int(row), "its camera and its label differ") for row in np.flatnonzero(differ))
    if "depth" in table.column_names:
        wanted = 4 * manifest.resolution**2
        for row, data in enumerate(table["depth"]):
            if len(data.as_py()) != wanted:
                yield row, f"its depth has {len(data.as_py())} bytes and not {wanted}"
            elif np.isnan(np.frombuffer(data.as_py(), "<f4")).any():
                yield row, "its depth has a number that is not one"
    if "weight" in table.column_names:
        weights = table["weight"].to_numpy()
        wrong = ~np.isfinite(weights) | (weights < 0)
        yield from ((int(row), f"its weight is {weights[row]:g}") for row in np.flatnonzero(wrong))


_WHOLE = ("image", "camera", "identity", "depth", "mask", "weight", "name", "label")


def _picture_fault(data: bytes, column: str, resolution: int) -> str | None:
    try:
        image = open_picture(data, f"its {column}")
    except UserError as error:
        return str(error)
    width, height = image.size
    if (width, height) != (resolution, resolution):
        return f"its {column} is {width}×{height} and not {resolution}×{resolution}"
    return None


def _numbers(table: pyarrow.Table, column: str) -> np.ndarray:
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, CAMERA_SIZE)
