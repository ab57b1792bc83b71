"""The Ray task of an ingestion: reads the images of one shard, checks and edits them, writes the shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from mimic3d_platform.data.format import camera_labels
from mimic3d_platform.data.format.write_shards import (
    Layout,
    Row,
    ShardRecord,
    read_record,
    write_record,
    write_shard,
)
from mimic3d_platform.data.ingest.image_edits import EditedImage, edit_image
from mimic3d_platform.data.ingest.ingest_plan import EXTRA_PREFIX, IngestPlan, entries_of
from mimic3d_platform.data.ingest.source_files import read_entries
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage import StorageError

# Bytes of source files in memory at a time.
_READ_BYTES = 32 * 2**20


def ingest_shard(
    index: int, layout: Layout, plan: IngestPlan, table: pa.Table, starts: np.ndarray
) -> ShardRecord:
    """Writes shard `index`, unless an interrupted run of the same plan has completed it.

    Args:
        table: of all images (`ingest_plan.tabulate`).
        starts: `IngestPlan.shard_starts`.
    """
    if (record := read_record(layout, index, plan.digest)) is not None:
        return record
    rows: list[Row] = []
    left_out: list[str] = []
    first, after = int(starts[index]), int(starts[index + 1])
    for part in _parts(table.slice(first, after - first)):
        for described, content in zip(part.to_pylist(), _contents(plan, part), strict=True):
            try:
                if isinstance(content, UserError):
                    raise content
                image = _checked_image(content, described, plan)
            except UserError:
                if not plan.partial:
                    raise
                left_out.append(described["name"])
                continue
            rows += _rows(described, image, plan)
    record = write_shard(layout, index, rows, left_out=left_out)
    write_record(layout, record, plan.digest)
    return record


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    """Slices of rows whose files fit in memory together."""
    start, total = 0, 0
    for row, size in enumerate(table["size"].to_numpy().tolist()):
        if row > start and total + size > _READ_BYTES:
            yield table.slice(start, row - start)
            start, total = row, 0
        total += size
    yield table.slice(start)


def _contents(plan: IngestPlan, part: pa.Table) -> list[bytes | UserError]:
    """The files of some rows; the errors of those that are damaged, where the plan leaves such out.

    Raises:
        UserError: storage cannot be read, or a file is damaged and has to be there.
    """
    entries = entries_of(part)
    try:
        return list(read_entries(plan.source, entries))
    except StorageError:
        raise
    except UserError:
        if not plan.partial:
            raise
    found: list[bytes | UserError] = []
    for entry in entries:
        try:
            found += read_entries(plan.source, [entry])
        except StorageError:
            raise
        except UserError as error:
            found.append(error)
    return found


def _checked_image(data: bytes, described: dict[str, Any], plan: IngestPlan) -> EditedImage:
    """The edited image of a row of the table.

    Raises:
        UserError: as `edit_image`; the result has not the plan's resolution, or the source's image not the
            proportions that its camera describes.
    """
    where = f"{described['name']} of {plan.source}"
    image = edit_image(data, plan.edit, where)
    if image.side != plan.resolution:
        raise UserError(
            f"{where} is {image.width}×{image.height} and the first image makes a set of "
            f"{plan.resolution}×{plan.resolution}: use --resize {plan.resolution}"
        )
    width, height = described["width"], described["height"]
    if width and abs(image.width * height - image.height * width) > 0.01 * image.width * height:
        raise UserError(
            f"{where} is {image.width}×{image.height} and its camera is of {width}×{height}: "
            "give the images that the cameras describe"
        )
    return image


def _rows(described: dict[str, Any], image: EditedImage, plan: IngestPlan) -> Iterator[Row]:
    """The row of an image, and that of its mirrored twin if the plan has one."""
    label = np.array(described["label"])
    if image.cropped:
        label = camera_labels.cropped(label, image.width, image.height, image.left, image.top, image.square)
    shared = {
        key.removeprefix(EXTRA_PREFIX): value
        for key, value in described.items()
        if key.startswith(EXTRA_PREFIX)
    }
    shared["identity"] = described["identity"]
    name = described["name"]
    weight = described.get("weight")
    stored_name = described["changed name"] if image.changed else name
    yield {**shared, "image": image.data, "name": stored_name, **_camera_columns(label, weight, plan)}
    if plan.mirror:
        twin = camera_labels.mirrored(label[None])[0]
        weight = described.get("mirrored weight", weight)
        columns = _camera_columns(twin, weight, plan)
        yield {**shared, "image": image.mirrored(), "name": described["mirrored name"], **columns}


def _camera_columns(label: np.ndarray, weight: float | None, plan: IngestPlan) -> Row:
    values: Row = {"camera": label.astype(np.float32)}
    if weight is not None:
        values["weight"] = weight
    if plan.exact:
        values["label"] = label
    return values
