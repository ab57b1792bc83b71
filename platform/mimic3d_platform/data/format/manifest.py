"""The manifest of a data set: a folder of Parquet shards is a data set once its manifest is written.

    part-00000.parquet …   the shards; `row_group_rows` rows in every row group but a shard's last;
                           part-1a2b3c4d-00000.parquet in a set that replaced another
    _manifest.parquet      no rows; in its metadata `Manifest` as JSON, and the card (models, authors,
                           licences) as Markdown; written last

Columns, of which only `image` is required (training also requires `camera`):

    image     binary       an image file (PNG, JPEG or WebP) of R×R pixels, read as RGB
    camera    25 float32   the camera label (`mimic3d.cameras`)
    identity  string       the name of the object shown
    depth     binary       R·R little-endian float32: world units along the ray through the pixel's centre,
                           +inf where the ray hits nothing
    mask      binary       a PNG file of one channel: the share of the pixel that is covered
    weight    float32      how much the row counts in a camera-balanced training, 1 on average
    name      string       the name of the image file at its source
    label     25 float64   the camera label, where float32 does not hold all of its digits

Any other column is the user's own; it may hold nulls, and is copied unchanged.

Loader processes import this module: it loads neither PyArrow nor PyTorch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from mimic3d_platform.errors import UserError

FORMAT = "mimic3d-dataset"
VERSION = 1
MANIFEST = "_manifest.parquet"
# Files of sets of older versions, whose manifest was JSON with the card beside it.
FORMER_MANIFEST = "manifest.json"
FORMER_CARD = "README.md"
CAMERA_SIZE = 25
COLUMNS = ("image", "camera", "identity", "depth", "mask")
MOST_ROW_GROUP_ROWS = 256
# What to do about a shard that does not match the manifest.
REWRITE = "write the data set again, or copy it again"
_RANGES = ("radius", "yaw", "pitch", "focal")


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a data set.

    Attributes:
        path: its name within the data set's folder.
        sha256: hexadecimal digest of the file.
    """

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of a complete data set.

    Attributes:
        resolution: R, pixels; images are R×R.
        count: number of images; the sum of the shards' rows.
        identities: number of different objects.
        fingerprint: SHA-256 over the shards' digests; sets with the same fingerprint hold the same rows.
        cameras: the minimum and maximum `radius` (world units), `yaw`, `pitch` (radians) and `focal` (image
            widths) of all cameras around the origin; empty for a set without cameras.
        provenance: how the set was made.
        licences: the licences of the models or images.
        row_group_rows: rows in every row group but the last of a shard.
    """

    resolution: int
    count: int
    identities: int
    columns: list[str]
    shards: list[Shard]
    fingerprint: str
    cameras: dict[str, list[float]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    licences: list[str] = field(default_factory=list)
    row_group_rows: int = MOST_ROW_GROUP_ROWS
    format: str = FORMAT
    version: int = VERSION

    @cached_property
    def starts(self) -> np.ndarray:
        """(shards + 1,): the number in the set of each shard's first row, and the count of all rows."""
        return np.cumsum([0, *(shard.rows for shard in self.shards)])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) shards and (n,) rows within them, of row numbers (n,) of the set."""
        shards = np.searchsorted(self.starts, rows, side="right") - 1
        return shards, rows - self.starts[shards]

    def to_json(self) -> bytes:
        """The content of the manifest file."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> Manifest:
        """Parses a manifest file strictly.

        Args:
            uri: the data set's folder, for error messages.
        Raises:
            UserError: not a manifest; another version; a field that is unknown, missing, of the wrong type
                or inconsistent with the others.
        """
        where = f"the manifest of {uri}"
        try:
            content = json.loads(data)
        except ValueError as error:
            raise UserError(f"{where} is not JSON ({error}): write the data set again") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{where} is not of the format {FORMAT}: give the URI of a mimic3d data set")
        if content.get("version") != VERSION:
            raise UserError(
                f"{where} has version {content.get('version')!r}, this program reads {VERSION}: "
                "write the data set again, or use a matching mimic3d"
            )
        # Older sets, written before row groups depended on the resolution, all have the largest.
        content = {"row_group_rows": MOST_ROW_GROUP_ROWS, **content}
        _check_fields(content, _MANIFEST_TYPES, where)
        if not content["row_group_rows"]:
            raise UserError(f"{where} has a row_group_rows of 0: write the data set again")
        for index, shard in enumerate(content["shards"]):
            _check_fields(shard, _SHARD_TYPES, f"shard {index} in {where}")
        for name, limits in content["cameras"].items():
            two = isinstance(limits, list) and len(limits) == 2 and all(map(_is_number, limits))
            if name not in _RANGES or not two:
                raise UserError(f"{where} has an unreadable camera range {name!r}: write the data set again")
        manifest = cls(**{**content, "shards": [Shard(**shard) for shard in content["shards"]]})
        rows = sum(shard.rows for shard in manifest.shards)
        if manifest.count != rows:
            raise UserError(
                f"{where} counts {manifest.count} images and its shards {rows}: write the data set again"
            )
        if manifest.fingerprint != fingerprint(manifest.shards):
            raise UserError(
                f"{where} has a fingerprint that does not match its shards: write the data set again"
            )
        return manifest


_MANIFEST_TYPES: Mapping[str, type] = {
    "format": str,
    "version": int,
    "resolution": int,
    "count": int,
    "identities": int,
    "columns": list,
    "shards": list,
    "fingerprint": str,
    "cameras": dict,
    "provenance": dict,
    "licences": list,
    "row_group_rows": int,
}
_SHARD_TYPES: Mapping[str, type] = {"path": str, "rows": int, "bytes": int, "sha256": str}
assert set(_MANIFEST_TYPES) == {item.name for item in fields(Manifest)}


def fingerprint(shards: list[Shard]) -> str:
    """SHA-256 over the shards' digests, in order."""
    return hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_fields(content: object, types: Mapping[str, type], where: str) -> None:
    """Raises a UserError unless `content` is an object with exactly the fields `types`, of those types."""
    if not isinstance(content, dict):
        raise UserError(f"{where} is not an object: write the data set again")
    if unknown := sorted(content.keys() - types.keys()):
        raise UserError(f"{where} has unknown fields {', '.join(unknown)}: write the data set again")
    if missing := sorted(types.keys() - content.keys()):
        raise UserError(f"{where} lacks the fields {', '.join(missing)}: write the data set again")
    for name, kind in types.items():
        value = content[name]
        negative = isinstance(value, int) and value < 0
        if not isinstance(value, kind) or negative or (kind is int and isinstance(value, bool)):
            raise UserError(f"{where} has a {name} that is not of type {kind.__name__}: write it again")
