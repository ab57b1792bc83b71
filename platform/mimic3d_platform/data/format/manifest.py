"""What a data set is: a folder of Parquet shards, sealed by a manifest that is written last.

    part-00000.parquet …   `row_group_rows` rows a row group, in all but a shard's last exactly so many;
                           part-1a2b3c4d-00000.parquet in a set that replaced another
    manifest.json          `Manifest` as JSON
    README.md              the card: models, authors, licences

Columns: `image` an image file's bytes as given (PNG, JPEG or WebP), R×R, shown as RGB; `camera` 25 float32
(mimic3d.cameras); `identity` the name of the object; `depth` raw little-endian float32, R·R, world units
along the ray through the pixel's centre, +inf where it hits nothing; `mask` PNG bytes, one channel, the
share of the pixel that is covered; `weight` float32, how often a balanced training draws the row, 1 on
average; `name` the image file's name at its source; `label` the camera's 25 numbers in float64, where
float32 does not say them all. Any other column is the user's own: it may be null, and passes through.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    import pyarrow

FORMAT = "mimic3d-dataset"
VERSION = 1
MANIFEST = "manifest.json"
CARD = "README.md"
CAMERA_SIZE = 25
COLUMNS = ("image", "camera", "identity", "depth", "mask")
# What to do about a shard that is not what the manifest says.
AGAIN = "write the data set again, or copy it anew"
_RANGES = ("radius", "yaw", "pitch", "focal")

# A reader that wants one row fetches a row group: its images have this many bytes at most when decoded.
_ROW_GROUP_BYTES = 16 * 2**20
_MOST_ROW_GROUP_ROWS = 256


def row_group_rows(resolution: int) -> int:
    """Rows of a row group for images of R×R: a power of two, 256 for small images."""
    fit = max(_ROW_GROUP_BYTES // (3 * resolution**2), 1)
    return min(1 << (fit.bit_length() - 1), _MOST_ROW_GROUP_ROWS)


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a set: its name within the folder, rows, bytes and the SHA-256 of those bytes."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The seal of a complete data set.

    Attributes:
        resolution: R, pixels; images are R×R.
        count: images in all; the sum of the shards' rows.
        identities: how many different objects.
        fingerprint: SHA-256 over the shards' digests: two sets of one fingerprint hold the same rows.
        cameras: the least and the greatest `radius` (world units), `yaw`, `pitch` (radians) and `focal`
            (image widths) of all cameras around the origin; empty for a set without cameras.
        provenance: how the set was made.
        licences: the licences of what it was made from.
        row_group_rows: rows of every row group but a shard's last.
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
    row_group_rows: int = _MOST_ROW_GROUP_ROWS
    format: str = FORMAT
    version: int = VERSION

    def to_json(self) -> bytes:
        """The manifest file's bytes."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> Manifest:
        """Parses a manifest strictly.

        Raises:
            UserError: not a manifest, of another version, or with a field unknown, missing, mistyped or at
                odds with the others.
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
        # Sets that were written before row groups went by the images' size had the largest.
        content = {"row_group_rows": _MOST_ROW_GROUP_ROWS, **content}
        _check_fields(content, _MANIFEST_TYPES, where)
        if not content["row_group_rows"]:
            raise UserError(f"{where} has row groups of no row: write the data set again")
        for index, shard in enumerate(content["shards"]):
            _check_fields(shard, _SHARD_TYPES, f"shard {index} in {where}")
        for name, span in content["cameras"].items():
            numbers = isinstance(span, list) and len(span) == 2 and all(_is_number(value) for value in span)
            if name not in _RANGES or not numbers:
                raise UserError(f"{where} has an unreadable camera range {name!r}: write the data set again")
        manifest = cls(**{**content, "shards": [Shard(**shard) for shard in content["shards"]]})
        if manifest.count != sum(shard.rows for shard in manifest.shards):
            raise UserError(f"{where} counts {manifest.count} images and its shards do not: write it again")
        if manifest.fingerprint != fingerprint(manifest.shards):
            raise UserError(f"{where} does not bear its shards' fingerprint: write the data set again")
        return manifest


_MANIFEST_TYPES = {
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
_SHARD_TYPES = {"path": str, "rows": int, "bytes": int, "sha256": str}
assert set(_MANIFEST_TYPES) == {item.name for item in fields(Manifest)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_fields(content: object, types: dict[str, type], where: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{where} is not an object: write the data set again")
    if strange := sorted(content.keys() - types.keys()):
        raise UserError(f"{where} has unknown fields {', '.join(strange)}: write the data set again")
    if missing := sorted(types.keys() - content.keys()):
        raise UserError(f"{where} lacks the fields {', '.join(missing)}: write the data set again")
    for name, kind in types.items():
        value = content[name]
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):
            raise UserError(f"{where} has a {name} that is no {kind.__name__}: write the data set again")


def fingerprint(shards: list[Shard]) -> str:
    """SHA-256 over the shards' digests, in order."""
    return hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest()


def arrow_schema(
    columns: tuple[str, ...] = COLUMNS, extras: Mapping[str, str] | None = None
) -> pyarrow.Schema:
    """The Parquet schema of a set with these columns.

    Args:
        extras: the Arrow type's name (`string`, `double`, `int64`, `binary` …) of each column of the user's.
    """
    import pyarrow as pa

    types = {
        "image": pa.binary(),
        "camera": pa.list_(pa.float32(), CAMERA_SIZE),
        "identity": pa.string(),
        "depth": pa.binary(),
        "mask": pa.binary(),
        "weight": pa.float32(),
        "name": pa.string(),
        "label": pa.list_(pa.float64(), CAMERA_SIZE),
    }
    own = {name: pa.type_for_alias(kind) for name, kind in (extras or {}).items()}
    return pa.schema(
        [
            pa.field(name, types[name], nullable=False) if name in types else pa.field(name, own[name])
            for name in columns
        ]
    )


def shard_name(index: int, generation: str = "") -> str:
    """`part-00000.parquet` and so on; with a generation `part-1a2b3c4d-00000.parquet`."""
    return f"part-{generation}{'-' if generation else ''}{index:05d}.parquet"
