"""A look at a data set: its numbers, a contact sheet, where its cameras stand, what it holds twice."""

from __future__ import annotations

import functools
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimic3d import randomness
from mimic3d_platform import storage
from mimic3d_platform.data.format.camera_labels import yaw_pitch_radius
from mimic3d_platform.data.format.dataset import cameras_of, open_dataset, require
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.ingest.image_edits import open_picture
from mimic3d_platform.data.inspect.camera_plot import camera_plot
from mimic3d_platform.data.inspect.duplicates import find_duplicates

if TYPE_CHECKING:
    import pyarrow
    from PIL.ImageDraw import ImageDraw

_TILES = 40
_COLUMNS = 8
_TILE = 128
_STRIP = 36
_ROSE = 14


def inspect_dataset(
    uri: str,
    out_png: str | Path | None = None,
    *,
    cameras_png: str | Path | None = None,
    duplicates: bool = False,
    here: bool = True,
) -> dict[str, Any]:
    """The numbers of the data set at `uri`, and pictures of it on request.

    Args:
        out_png: where to write a contact sheet, a path or URI.
        cameras_png: where to write the plot of where the cameras stand.
        duplicates: read every image and report those that come twice.
        here: look for them in this process, not on Ray.
    Returns:
        counts, resolution, columns, bytes, camera ranges (angles in degrees), fingerprint and licences.
    Raises:
        UserError: as `open_dataset`; a shard is broken; a picture cannot be written.
    """
    manifest = open_dataset(uri)
    if out_png is not None:
        storage.write_bytes(out_png, contact_sheet(uri, manifest))
    if cameras_png is not None:
        storage.write_bytes(cameras_png, camera_plot(cameras_of(uri).numpy(), uri))
    angles = ("yaw", "pitch")
    numbers = {
        "uri": uri,
        "images": manifest.count,
        "identities": manifest.identities,
        "resolution": manifest.resolution,
        "columns": manifest.columns,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "cameras": {
            name: [math.degrees(value) if name in angles else value for value in span]
            for name, span in manifest.cameras.items()
        },
        "fingerprint": manifest.fingerprint,
        "licences": manifest.licences,
    }
    if duplicates:
        numbers["duplicates"] = find_duplicates(uri, manifest, here=here)
    return numbers


def contact_sheet(uri: str, manifest: Manifest, seed: int = 0) -> bytes:
    """A PNG file: images drawn at random; under each a rose of its camera, and its yaw and pitch in degrees.

    The rose shows the sphere around the object from above, the front (+z) at the bottom. The camera is the
    dot: at the rim when level with the object, in the middle when above it, hollow when below.
    """
    from PIL import Image, ImageDraw

    require(manifest, where=uri)
    rows = randomness.permutation(seed, "contact sheet", size=manifest.count)[:_TILES]
    tiles = _read_rows(uri, manifest, rows)
    yaw, pitch, _ = yaw_pitch_radius(np.array([camera for _, camera in tiles]))
    lines = math.ceil(len(rows) / _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, lines * (_TILE + _STRIP)), "white")
    draw = ImageDraw.Draw(sheet)
    smooth = Image.Resampling.LANCZOS if manifest.resolution > _TILE else Image.Resampling.NEAREST
    for place, (row, (data, _)) in enumerate(zip(rows, tiles, strict=True)):
        left, top = place % _COLUMNS * _TILE, place // _COLUMNS * (_TILE + _STRIP)
        tile = open_picture(data, f"row {row} of {uri}").convert("RGB")
        sheet.paste(tile.resize((_TILE, _TILE), smooth), (left, top))
        _draw_rose(draw, left + 20, top + _TILE + _STRIP // 2, float(yaw[place]), float(pitch[place]))
        label = f"yaw {math.degrees(yaw[place]):+.0f}°\npitch {math.degrees(pitch[place]):+.0f}°"
        draw.multiline_text((left + 44, top + _TILE + 4), label, fill="black", spacing=2)
    sink = io.BytesIO()
    sheet.save(sink, format="PNG")
    return sink.getvalue()


def _draw_rose(draw: ImageDraw, x: int, y: int, yaw: float, pitch: float) -> None:
    draw.ellipse((x - _ROSE, y - _ROSE, x + _ROSE, y + _ROSE), outline=(150, 150, 150))
    draw.line((x, y, x, y + _ROSE), fill=(200, 200, 200))
    right = x + _ROSE * math.sin(yaw) * math.cos(pitch)
    below = y + _ROSE * math.cos(yaw) * math.cos(pitch)
    draw.line((right, below, x, y), fill=(200, 60, 40))
    inside = (200, 60, 40) if pitch >= 0 else "white"
    draw.ellipse((right - 3, below - 3, right + 3, below + 3), fill=inside, outline=(200, 60, 40))


def _read_rows(uri: str, manifest: Manifest, rows: np.ndarray) -> list[tuple[bytes, np.ndarray]]:
    """The images and cameras of a few rows anywhere; only their row groups are read."""
    import pyarrow.parquet as pq

    starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
    wanted: dict[tuple[int, int], list[int]] = {}
    for row in rows.tolist():
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        wanted.setdefault((shard, int(row - starts[shard]) // manifest.row_group_rows), []).append(row)

    def read(place: str, group: int) -> pyarrow.Table:
        files, path = storage.filesystem(place)
        with files.open_input_file(path) as stream:
            return pq.ParquetFile(stream).read_row_group(group, ["image", "camera"])

    found = {}
    for (shard, group), members in sorted(wanted.items()):
        place = storage.join(uri, manifest.shards[shard].path)
        table = storage.access(place, "read", functools.partial(read, place, group))
        for row in members:
            offset = row - int(starts[shard]) - group * manifest.row_group_rows
            found[row] = (table["image"][offset].as_py(), np.array(table["camera"][offset].as_py()))
    return [found[row] for row in rows.tolist()]
