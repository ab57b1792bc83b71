"""A look at a data set: its numbers, and a contact sheet with every camera's place under its image."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimic3d import cameras as geometry
from mimic3d_platform import storage
from mimic3d_platform.data import counter
from mimic3d_platform.data.reader import RowReader
from mimic3d_platform.data.schema import Manifest
from mimic3d_platform.data.stream import CACHE_BYTES, open_dataset, require

_TILES = 40
_COLUMNS = 8
_TILE = 128
_LABEL = 14


def inspect_dataset(uri: str, out_png: str | Path | None = None) -> dict[str, Any]:
    """The numbers of the data set at `uri`, and a contact sheet of images drawn from it.

    Args:
        out_png: where to write the sheet, a path or URI; none is drawn when None.
    Returns:
        counts, resolution, columns, bytes, camera ranges (angles in degrees), fingerprint and licences.
    Raises:
        UserError: as `open_dataset`; a shard is broken; `out_png` cannot be written.
    """
    manifest = open_dataset(uri)
    if out_png is not None:
        storage.write_bytes(out_png, contact_sheet(uri, manifest))
    angles = ("yaw", "pitch")
    return {
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


def contact_sheet(uri: str, manifest: Manifest, seed: int = 0) -> bytes:
    """A PNG file: images drawn at random, under each its camera's yaw and pitch in degrees."""
    from PIL import Image, ImageDraw

    require(manifest, where=uri)
    rows = counter.permutation(seed, "contact sheet", size=manifest.count)[:_TILES]
    images, cameras = RowReader(uri, manifest, CACHE_BYTES).fetch(rows)
    yaw, pitch, _ = geometry.yaw_pitch_radius(torch.from_numpy(cameras))
    lines = math.ceil(len(rows) / _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, lines * (_TILE + _LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, pixels in enumerate(images):
        left, top = place % _COLUMNS * _TILE, place // _COLUMNS * (_TILE + _LABEL)
        tile = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        smooth = Image.Resampling.LANCZOS if manifest.resolution > _TILE else Image.Resampling.NEAREST
        sheet.paste(tile.resize((_TILE, _TILE), smooth), (left, top))
        label = f"{math.degrees(yaw[place]):+.0f}° {math.degrees(pitch[place]):+.0f}°"
        draw.text((left + 4, top + _TILE), label, fill="black")
    sink = io.BytesIO()
    sheet.save(sink, format="PNG")
    return sink.getvalue()
