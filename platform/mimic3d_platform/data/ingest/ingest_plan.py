"""The plan of an ingestion: all that the rows depend on, and what Ray tasks need to make them.

A source's listing becomes one Arrow table, a row for each image, which the tasks of a node share in memory.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mimic3d.training.camera_rarity import camera_rarity
from mimic3d_platform.data.format import camera_labels
from mimic3d_platform.data.format.manifest import CAMERA_SIZE
from mimic3d_platform.data.ingest.image_edits import Edit
from mimic3d_platform.data.ingest.listing import Listing
from mimic3d_platform.data.ingest.placement import Placement
from mimic3d_platform.data.ingest.source_files import Entry, Source
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.digests import sha256_of_json
from mimic3d_platform.storage.uris import without_login

# To be raised when the same source and options give other rows, so that shards of an older version are not
# taken for shards of the same plan.
INGEST_VERSION = 2

# Bytes of a row without its image: camera, names.
_ROW_BYTES = 256
_ENTRY_COLUMNS = ("size", "packed", "offset", "method", "check")
EXTRA_PREFIX = "extra "


@dataclass(frozen=True)
class IngestPlan:
    """All that the rows depend on, except the images' content.

    Attributes:
        listing: digest of names, cameras, and the files' sizes and checksums (or times of change).
        mirror: every image is followed by its mirrored twin.
        balance: rows have the weights of `camera_rarity`.
        exact: rows have their label in float64 too, since float32 does not hold all of its digits.
        partial: images that cannot be used are left out.
    """

    source: str
    form: str
    listing: str
    resolution: int
    edit: Edit
    mirror: bool
    balance: bool
    up: str
    placement: Placement
    exact: bool
    partial: bool
    shard_bytes: int
    version: int = INGEST_VERSION

    @property
    def digest(self) -> str:
        """SHA-256 of the plan without the source's URI, and without a placement that changes nothing."""
        content = {key: value for key, value in asdict(self).items() if key != "source"}
        if self.placement == Placement():
            del content["placement"]
        return sha256_of_json(content)

    @property
    def provenance(self) -> dict[str, Any]:
        """The plan's part of the manifest's provenance."""
        content = asdict(self)
        # As it is read back: the manifest is JSON, which has no tuples.
        content["placement"]["centre"] = list(self.placement.centre)
        return {**content.pop("edit"), **content, "source": without_login(self.source)}

    def columns(self, weighted: bool, extras: dict[str, str]) -> tuple[str, ...]:
        """The data set's columns; `extras` are the user's own."""
        optional = (["weight"] if weighted else []) + (["label"] if self.exact else [])
        return ("image", "camera", "identity", "name", *optional, *extras)

    def shard_starts(self, table: pa.Table) -> np.ndarray:
        """(shards + 1,): each shard's first row in `table`, and the number of rows.

        A shard takes about `shard_bytes` at most; an image larger than that is a shard of its own.
        """
        raw = 3 * self.resolution**2
        given = np.minimum(table["size"].to_numpy(), self.shard_bytes)
        unchanged = not (self.edit.crop or self.edit.resize or self.edit.background)
        sizes = given if unchanged else np.minimum(given, raw)
        sizes = (sizes + raw if self.mirror else sizes) + _ROW_BYTES
        starts, total = [0], 0
        for row, size in enumerate(sizes.tolist()):
            if total and total + size > self.shard_bytes:
                starts.append(row)
                total = 0
            total += size
        return np.array([*starts, len(table)])


def tabulate(
    source: Source, listing: Listing, labels: np.ndarray, mirror: bool, balance: bool
) -> tuple[pa.Table, bool]:
    """The table of a listing, and whether float32 loses digits of its labels.

    Args:
        labels: (n, 25), of the listing's images in the data set's world.
        mirror: the images will have mirrored twins.
        balance: add the weights of `camera_rarity`, of twins too.
    Raises:
        UserError: a camera is faulty, weights exist already, or twins do.
    """
    if faults := camera_labels.label_faults(labels):
        first = min(faults)
        more = f" ({len(faults)} cameras are faulty)" if len(faults) > 1 else ""
        raise UserError(
            f"the camera of {listing.names[first]} in {source.uri} has {faults[first]}: correct it{more}"
        )
    if balance and listing.weights is not None:
        raise UserError(f"{source.uri} has weights already: leave out --balance, or remove its weights")
    entries = [source.entries[name] for name in listing.entries]
    names = listing.names
    _check_unique(names, listing.entries, source.uri)
    if mirror and (repeated := {twin_name(name) for name in names}.intersection(names)):
        raise UserError(
            f"{source.uri} has mirrored twins already ({min(repeated)} is one): leave out --mirror"
        )
    changed_names = _apart(names, lambda name: posixpath.splitext(name)[0] + ".png", {*names})
    columns: dict[str, Any] = {
        "entry": [entry.name for entry in entries],
        "name": names,
        "changed name": changed_names,
        "identity": listing.identities,
        "label": pa.FixedSizeListArray.from_arrays(pa.array(labels.reshape(-1)), CAMERA_SIZE),
        "width": listing.sizes[:, 0],
        "height": listing.sizes[:, 1],
    }
    if mirror:
        columns["mirrored name"] = _apart(names, twin_name, {*names, *changed_names})
    columns |= {name: [getattr(entry, name) for entry in entries] for name in _ENTRY_COLUMNS}
    if balance:
        stored = np.concatenate([labels, camera_labels.mirrored(labels)]) if mirror else labels
        weights = camera_rarity(stored).astype(np.float32)
        columns["weight"] = weights[: len(labels)]
        if mirror:
            columns["mirrored weight"] = weights[len(labels) :]
    elif listing.weights is not None:
        columns["weight"] = listing.weights
    for name, extra in listing.extras.items():
        columns[EXTRA_PREFIX + name] = pa.array(extra.values, pa.type_for_alias(extra.kind))
    return pa.table(columns), camera_labels.lose_digits(labels)


def table_digest(table: pa.Table) -> str:
    """SHA-256 of a table's content."""
    digest = hashlib.sha256()
    for batch in table.to_batches(max_chunksize=2**14):
        digest.update(batch.serialize())
    return digest.hexdigest()


def entries_of(table: pa.Table) -> list[Entry]:
    """The source's files of a table's rows."""
    names = table["entry"].to_pylist()
    numbers = zip(*(table[key].to_pylist() for key in _ENTRY_COLUMNS), strict=True)
    return [Entry(name, *entry) for name, entry in zip(names, numbers, strict=True)]


def twin_name(name: str) -> str:
    """The row name of an image's mirrored twin."""
    return f"{posixpath.splitext(name)[0]}_mirror.png"


def _check_unique(names: list[str], entries: list[str], uri: str) -> None:
    seen: dict[str, str] = {}
    for name, entry in zip(names, entries, strict=True):
        if name in seen:
            raise UserError(
                f"{uri} has two images with the name {name} ({seen[name]} and {entry}): rename one"
            )
        seen[name] = entry


def _apart(names: list[str], change: Callable[[str], str], taken: set[str]) -> list[str]:
    """The changed names, each different from all others: `a.jpg` beside `a.png` becomes `a.jpg.png`.

    Args:
        taken: names that are in use; the changed names are added.
    """
    result = []
    for name in names:
        candidate = change(name)
        if candidate != name and candidate in taken:
            candidate = change(f"{name}.png")
            while candidate in taken:
                candidate = change(f"{candidate}.png")
        taken.add(candidate)
        result.append(candidate)
    return result
