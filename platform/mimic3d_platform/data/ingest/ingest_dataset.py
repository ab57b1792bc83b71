"""Posed images from elsewhere to a data set: EG3D's zips, COLMAP's models, NeRF's transforms, tables.

One process lists the source: names, sizes, cameras. The images go through tasks, a shard each, which read
just their own files, look at every image, and write. What a shard holds is a function of the listing and the
options alone, so that a run that was killed goes on with the shards it lacks, wherever and however parallel.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.cluster.tasks import run_pieces
from mimic3d_platform.data.format import camera_labels
from mimic3d_platform.data.format.manifest import CAMERA_SIZE, MANIFEST, Manifest
from mimic3d_platform.data.format.write_shards import (
    SHARD_BYTES,
    Layout,
    ShardRecord,
    open_layout,
    read_record,
    sweep,
    write_manifest,
    write_record,
    write_shard,
)
from mimic3d_platform.data.ingest.image_edits import BACKGROUNDS, LARGEST_SIDE, Edit, Picture, prepare
from mimic3d_platform.data.ingest.read_listing import Listing, read_listing
from mimic3d_platform.data.ingest.source_files import Entry, Source, read_entries
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    import pyarrow

# Raise it when the same source and options give other rows: shards of an older program are then not taken.
INGEST = 1

# Source files in memory at a time.
_HELD_BYTES = 32 * 2**20
# What a row has beside its image: camera, names.
_ROW_BYTES = 256
_MOST_LEFT_OUT = 100
_FILE = ("size", "packed", "offset", "method", "check")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """All that the rows depend on, but the images' content.

    Attributes:
        listing: digests names, cameras and the files' sizes and checksums (or times of change).
        mirror: every image is followed by its mirrored twin.
        exact: rows keep their camera in float64 too, since float32 does not say all of its numbers.
        partial: leave out images that cannot be used.
    """

    source: str
    form: str
    listing: str
    resolution: int
    edit: Edit
    mirror: bool
    balance: bool
    up: str
    exact: bool
    partial: bool
    shard_bytes: int
    version: int = INGEST

    @property
    def digest(self) -> str:
        """SHA-256 of the plan; where the source lies has no part in it."""
        content = {key: value for key, value in asdict(self).items() if key != "source"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    by_folder: bool | None = None,
    partial: bool = False,
    licence: str | None = None,
    overwrite: bool = False,
    here: bool = False,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Progress | None = None,
) -> Manifest:
    """Makes a data set in the folder `dest_uri` of the images and cameras at `source_uri`, as Ray tasks.

    Args:
        form, cameras_file, by_folder, partial: as `read_listing`; `partial` leaves out broken images too.
        crop, resize, background: as `Edit`.
        mirror: add each image's mirrored twin with its mirrored camera.
        balance: add the weights of `camera_labels.balancing_weights`.
        up: the axis of the source that points up, a key of `camera_labels.UPWARDS`; it is turned to +y.
        licence: the images' licence, for the card.
        overwrite: replace another set at `dest_uri`.
        here: in this process instead of on Ray.
        on_progress: called with the rows done and all rows.
    Raises:
        UserError: the source cannot be used (it says which file), an option makes no sense, another set is at
            `dest_uri`, or storage or Ray are out of reach.
    """
    if background is not None and background not in BACKGROUNDS:
        raise UserError(f"background is {background!r}: give one of {', '.join(BACKGROUNDS)}")
    if up not in camera_labels.UPWARDS:
        raise UserError(f"up is {up!r}: give one of {', '.join(camera_labels.UPWARDS)}")
    if resize is not None and not 1 <= resize <= LARGEST_SIDE:
        raise UserError(f"resize is {resize}: give 1 to {LARGEST_SIDE} pixels")
    # Tasks run in folders of their own: a path from here would be another one there.
    source = Source(source_uri if storage.is_s3(source_uri) else str(storage.local_path(source_uri)))
    listing = read_listing(source, form=form, cameras=cameras_file, by_folder=by_folder, partial=partial)
    edit = Edit(crop, resize or 0, background or "")
    table, exact = _tabulate(source, listing, mirror, balance, up)
    exact = exact and not edit.crop
    plan = Plan(
        source=source.uri,
        form=listing.form,
        listing=_digest(table),
        resolution=edit.resize or _first_side(source, table, edit, partial),
        edit=edit,
        mirror=mirror,
        balance=balance,
        up=up,
        exact=exact,
        partial=partial,
        shard_bytes=shard_bytes,
    )
    total = len(table) * (2 if mirror else 1)
    progress = on_progress or (lambda done, total: None)
    seal = storage.join(dest_uri, MANIFEST)
    if storage.exists(seal) and not overwrite:
        manifest = Manifest.from_json(storage.read_bytes(seal), dest_uri)
        if manifest.provenance.get("plan") == plan.digest:
            sweep(dest_uri, manifest)
            progress(total, total)
            return manifest
    extras = {name: kind for name, (kind, _) in listing.extras.items()}
    layout = open_layout(
        dest_uri,
        plan.resolution,
        _columns(plan, "weight" in table.column_names, extras),
        extras=extras,
        overwrite=overwrite,
        plan=plan.digest,
    )
    bounds = _split(table, plan)
    done = 0

    def count(record: ShardRecord) -> None:
        nonlocal done
        done += record.shard.rows + len(record.left_out) * (2 if mirror else 1)
        progress(done, total)

    progress(0, total)
    records = run_pieces(
        ingest_shard, len(bounds) - 1, layout, plan, table, bounds, on_result=count, here=here
    )
    left_out = listing.left_out + [name for record in records for name in record.left_out]
    records = [record for record in records if record.shard.rows]
    if not records:
        raise UserError(f"no image of {source_uri} can be used: the first is {left_out[0]}")
    provenance = {"tool": "mimic3d data ingest", "plan": plan.digest, **_shown(plan)}
    if left_out:
        provenance |= {"left_out": left_out[:_MOST_LEFT_OUT], "left_out_count": len(left_out)}
    return write_manifest(layout, records, provenance, [licence] if licence else [])


def _tabulate(
    source: Source, listing: Listing, mirror: bool, balance: bool, up: str
) -> tuple[pyarrow.Table, bool]:
    """What the tasks need, a row an image: one Arrow table, which a node's tasks share in memory.

    Returns:
        the table, and whether float32 loses digits of the labels.
    """
    import pyarrow as pa

    labels = camera_labels.turned(listing.labels, up) if up != "y" else listing.labels
    if faults := camera_labels.label_faults(labels):
        first = min(faults)
        more = f" ({len(faults)} cameras are wrong)" if len(faults) > 1 else ""
        raise UserError(
            f"the camera of {listing.names[first]} in {source.uri} has {faults[first]}: correct it{more}"
        )
    entries = [source.entries[name] for name in listing.entries]
    names = [_row_name(*pair) for pair in zip(listing.names, listing.entries, strict=True)]
    columns: dict[str, Any] = {
        "entry": listing.entries,
        "name": names,
        "identity": listing.identities,
        "label": pa.FixedSizeListArray.from_arrays(pa.array(labels.reshape(-1)), CAMERA_SIZE),
        "width": listing.sizes[:, 0],
        "height": listing.sizes[:, 1],
    }
    columns |= {name: [getattr(entry, name) for entry in entries] for name in _FILE}
    if balance and listing.weights is not None:
        raise UserError(f"{source.uri} brings weights of its own: leave out --balance, or its weights")
    if balance:
        both = np.concatenate([labels, camera_labels.mirrored(labels)]) if mirror else labels
        weights = camera_labels.balancing_weights(both)
        columns["weight"] = weights[: len(labels)]
        if mirror:
            columns["mirrored weight"] = weights[len(labels) :]
    elif listing.weights is not None:
        columns["weight"] = listing.weights
    if mirror:
        twins = {_twin(name) for name in names}
        if repeated := twins.intersection(names):
            raise UserError(
                f"{source.uri} has mirrored twins already ({min(repeated)} is one): leave out --mirror"
            )
    for name, (kind, values) in listing.extras.items():
        columns[f"extra {name}"] = pa.array(values, pa.type_for_alias(kind))
    return pa.table(columns), camera_labels.lose_digits(labels)


def _row_name(name: str, entry: str) -> str:
    """What a row is called: the listing's name for the image, made such that a zip may hold it."""
    clean = posixpath.normpath(name.replace("\\", "/"))
    return entry if clean.startswith("../") else clean


def _digest(table: pyarrow.Table) -> str:
    """SHA-256 of a listing: names, sizes, checksums or times, cameras and the rest."""
    sink = hashlib.sha256()
    for batch in table.to_batches(max_chunksize=2**14):
        sink.update(batch.serialize())
    return sink.hexdigest()


def _first_side(source: Source, table: pyarrow.Table, edit: Edit, partial: bool) -> int:
    """R, from the first image that can be used."""
    for start in range(len(table)):
        row = table.slice(start, 1)
        name = row["name"][0].as_py()
        try:
            data = next(read_entries(source.uri, _entries(row)))
            return prepare(data, edit, f"{name} of {source.uri}").side
        except UserError:
            if not partial:
                raise
    raise UserError(f"no image of {source.uri} can be used")


def _columns(plan: Plan, weighted: bool, extras: dict[str, str]) -> tuple[str, ...]:
    optional = (["weight"] if weighted else []) + (["label"] if plan.exact else [])
    return ("image", "camera", "identity", "name", *optional, *extras)


def _split(table: pyarrow.Table, plan: Plan) -> np.ndarray:
    """The first row of each shard and, last, the number of rows: shards of about `shard_bytes` at most."""
    shard_bytes, raw = plan.shard_bytes, 3 * plan.resolution**2
    given = np.minimum(table["size"].to_numpy(), shard_bytes)
    as_given = not (plan.edit.crop or plan.edit.resize or plan.edit.background)
    sizes = given if as_given else np.minimum(given, raw)
    sizes = (sizes + raw if plan.mirror else sizes) + _ROW_BYTES
    bounds, held = [0], 0
    for row, size in enumerate(sizes.tolist()):
        if held and held + size > shard_bytes:
            bounds.append(row)
            held = 0
        held += size
    return np.array([*bounds, len(table)])


def _shown(plan: Plan) -> dict[str, Any]:
    content = asdict(plan)
    return {**content.pop("edit"), **content}


def ingest_shard(
    index: int, layout: Layout, plan: Plan, table: pyarrow.Table, bounds: np.ndarray
) -> ShardRecord:
    """Reads the images of one shard and writes it, or takes the one that an earlier run of the plan left."""
    if (record := read_record(layout, index, plan.digest)) is not None:
        return record
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    part = table.slice(int(bounds[index]), int(bounds[index + 1] - bounds[index]))
    for piece in _pieces(part):
        contents = read_entries(plan.source, _entries(piece))
        for row, data in zip(piece.to_pylist(), contents, strict=True):
            try:
                picture = _picture(data, row, plan)
            except UserError:
                if not plan.partial:
                    raise
                left_out.append(row["name"])
                continue
            rows += _rows(row, picture, plan)
    record = write_shard(layout, index, rows, left_out=left_out)
    write_record(layout, record, plan.digest)
    return record


def _pieces(table: pyarrow.Table) -> Iterator[pyarrow.Table]:
    """Slices of rows whose files fit in memory together."""
    start, held = 0, 0
    for row, size in enumerate(table["size"].to_numpy().tolist()):
        if row > start and held + size > _HELD_BYTES:
            yield table.slice(start, row - start)
            start, held = row, 0
        held += size
    yield table.slice(start)


def _entries(table: pyarrow.Table) -> list[Entry]:
    names = table["entry"].to_pylist()
    return [
        Entry(name, *numbers)
        for name, *numbers in zip(names, *(table[key].to_pylist() for key in _FILE), strict=True)
    ]


def _picture(data: bytes, row: dict[str, Any], plan: Plan) -> Picture:
    where = f"{row['name']} of {plan.source}"
    picture = prepare(data, plan.edit, where)
    if picture.side != plan.resolution:
        raise UserError(
            f"{where} is {picture.width}×{picture.height} and the first image makes a set of "
            f"{plan.resolution}×{plan.resolution}: say --resize {plan.resolution}"
        )
    width, height = row["width"], row["height"]
    if width and abs(picture.width * height - picture.height * width) > 0.01 * picture.width * height:
        raise UserError(
            f"{where} is {picture.width}×{picture.height} and its camera is of {width}×{height}: "
            "give the images that the cameras are of"
        )
    return picture


def _rows(row: dict[str, Any], picture: Picture, plan: Plan) -> Iterator[dict[str, Any]]:
    """The row of an image, and that of its mirrored twin if asked for."""
    label = np.array(row["label"])
    if picture.square != picture.width or picture.square != picture.height:
        label = camera_labels.cropped(
            label, picture.width, picture.height, picture.left, picture.top, picture.square
        )
    shared = {key.removeprefix("extra "): value for key, value in row.items() if key.startswith("extra ")}
    shared["identity"] = row["identity"]
    name = posixpath.splitext(row["name"])[0] + ".png" if picture.changed else row["name"]
    yield {**shared, "image": picture.data, "name": name, **_camera(label, row.get("weight"), plan)}
    if plan.mirror:
        twin = camera_labels.mirrored(label[None])[0]
        weight = row.get("mirrored weight", row.get("weight"))
        yield {
            **shared,
            "image": picture.mirrored(),
            "name": _twin(row["name"]),
            **_camera(twin, weight, plan),
        }


def _camera(label: np.ndarray, weight: float | None, plan: Plan) -> dict[str, Any]:
    values: dict[str, Any] = {"camera": label.astype(np.float32)}
    if weight is not None:
        values["weight"] = weight
    if plan.exact:
        values["label"] = label
    return values


def _twin(name: str) -> str:
    return f"{posixpath.splitext(name)[0]}_mirror.png"
