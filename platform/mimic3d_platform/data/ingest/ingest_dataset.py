"""Ingestion: a data set made of the posed images of a source: `mimic3d data ingest`.

One process lists the source: names, sizes, cameras. Ray tasks, one for each shard, read their own image
files, check and edit every image, and write. The content of a shard depends on the listing and the options
alone, so that an interrupted run resumes with the shards that are missing, on whatever machines.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from mimic3d_platform import storage
from mimic3d_platform.cluster.tasks import run_pieces
from mimic3d_platform.data.format import camera_labels
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.format.write_shards import (
    SHARD_BYTES,
    Layout,
    ShardRecord,
    complete_set,
    open_layout,
    write_manifest,
)
from mimic3d_platform.data.ingest.image_edits import BACKGROUNDS, MOST_PIXELS, Edit, edit_image
from mimic3d_platform.data.ingest.ingest_plan import IngestPlan, entries_of, table_digest, tabulate
from mimic3d_platform.data.ingest.ingest_shard import ingest_shard
from mimic3d_platform.data.ingest.placement import find_placement
from mimic3d_platform.data.ingest.read_listing import read_listing
from mimic3d_platform.data.ingest.source_files import Source, read_entries
from mimic3d_platform.errors import UserError

_MOST_LISTED = 100


def ingest_dataset(
    source_uri: str,
    dest_uri: str,
    *,
    form: str | None = None,
    cameras_file: str | None = None,
    crop: int = 0,
    resize: int | None = None,
    background: str | None = None,
    mirror: bool = False,
    balance: bool = False,
    up: str = "y",
    centre: str | None = None,
    scale: str | None = None,
    by_folder: bool | None = None,
    partial: bool = False,
    licence: str | None = None,
    overwrite: bool = False,
    here: bool = False,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Makes a data set in the folder `dest_uri` of the images and cameras at `source_uri`, as Ray tasks.

    Args:
        form, cameras_file, by_folder, partial: as `read_listing`; `partial` leaves out broken images too.
        crop, resize, background: as `Edit`.
        mirror: add each image's mirrored twin with its mirrored camera.
        balance: add the column `weight`, by `camera_rarity`.
        up: the axis of the source's world that points up, a key of `camera_labels.UPWARDS`; it becomes +y.
        centre, scale: as `find_placement`; applied after `up`.
        licence: the images' licence, for the card.
        overwrite: replace another data set at `dest_uri`.
        here: work in this process instead of on Ray.
        on_progress: called with the rows done and all rows.
    Returns:
        the manifest of the new data set, or of a complete one that the same source and options made before.
    Raises:
        UserError: the source cannot be used (the message names the file), an option is out of range, another
            data set is at `dest_uri`, or storage or Ray cannot be reached.
    """
    _check_options(resize, background, up)
    # Ray tasks run in working directories of their own, where a relative path is another one.
    source = Source(storage.absolute(source_uri))
    listing = read_listing(source, form=form, cameras=cameras_file, by_folder=by_folder, partial=partial)
    edit = Edit(crop, resize or 0, background or "")
    upright = camera_labels.rotated(listing.labels, up) if up != "y" else listing.labels
    placement = find_placement(upright, centre, scale, source.uri)
    table, loses_digits = tabulate(source, listing, placement.apply(upright), mirror, balance)
    plan = IngestPlan(
        source=source.uri,
        form=listing.form,
        listing=table_digest(table),
        resolution=edit.resize or _first_side(source, table, edit, partial),
        edit=edit,
        mirror=mirror,
        balance=balance,
        up=up,
        placement=placement,
        exact=loses_digits and not edit.crop,
        partial=partial,
        shard_bytes=shard_bytes,
    )
    total = len(table) * (2 if mirror else 1)
    progress = on_progress or (lambda done, total: None)
    if not overwrite and (complete := complete_set(dest_uri, plan.digest)) is not None:
        progress(total, total)
        return complete
    extras = {name: extra.kind for name, extra in listing.extras.items()}
    layout = open_layout(
        dest_uri,
        plan.resolution,
        plan.columns("weight" in table.column_names, extras),
        extras=extras,
        overwrite=overwrite,
        plan=plan.digest,
    )
    progress(0, total)
    records = _write_shards(layout, plan, table, here, lambda done: progress(done, total))
    left_out = listing.left_out + [name for record in records for name in record.left_out]
    records = [record for record in records if record.shard.rows]
    if not records:
        raise UserError(f"no image of {source_uri} can be used: the first is {left_out[0]}")
    provenance = {"tool": "mimic3d data ingest", "plan": plan.digest, **plan.provenance}
    if left_out:
        provenance |= {"left_out": left_out[:_MOST_LISTED], "left_out_count": len(left_out)}
    return write_manifest(layout, records, provenance, [licence] if licence else [])


def _check_options(resize: int | None, background: str | None, up: str) -> None:
    if background is not None and background not in BACKGROUNDS:
        raise UserError(f"background is {background!r}: give one of {', '.join(BACKGROUNDS)}")
    if up not in camera_labels.UPWARDS:
        raise UserError(f"up is {up!r}: give one of {', '.join(camera_labels.UPWARDS)}")
    if resize is not None and not 1 <= resize <= MOST_PIXELS:
        raise UserError(f"resize is {resize}: give 1 to {MOST_PIXELS} pixels")


def _write_shards(
    layout: Layout, plan: IngestPlan, table: pa.Table, here: bool, on_rows: Callable[[int], None]
) -> list[ShardRecord]:
    """Writes the shards that are not there yet, as Ray tasks or in this process.

    Args:
        on_rows: called with the rows done, those that are left out included.
    """
    starts = plan.shard_starts(table)
    done = 0

    def count(record: ShardRecord) -> None:
        nonlocal done
        done += record.shard.rows + len(record.left_out) * (2 if plan.mirror else 1)
        on_rows(done)

    return run_pieces(ingest_shard, len(starts) - 1, layout, plan, table, starts, on_result=count, here=here)


def _first_side(source: Source, table: pa.Table, edit: Edit, partial: bool) -> int:
    """R, of the first image that can be used."""
    for start in range(len(table)):
        row = table.slice(start, 1)
        name = row["name"][0].as_py()
        try:
            (data,) = read_entries(source.uri, entries_of(row))
            return edit_image(data, edit, f"{name} of {source.uri}").side
        except UserError:
            if not partial:
                raise
    raise UserError(f"no image of {source.uri} can be used")
