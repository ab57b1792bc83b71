"""A contact sheet of a data set: images with their cameras, drawn at random."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from mimic3d import randomness
from mimic3d_platform.data.format.camera_labels import yaw_pitch_radius
from mimic3d_platform.data.format.dataset import check_trainable
from mimic3d_platform.data.format.image_files import open_image
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.format.read_rows import read_rows

_TILES = 40
_COLUMNS = 8
# Pixels: a tile's side, the height of the strip below it, the radius of the compass in the strip.
_TILE = 128
_STRIP = 36
_COMPASS = 14


def contact_sheet(uri: str, manifest: Manifest) -> bytes:
    """A PNG file: up to 40 random images, each above a compass, the yaw and the pitch of its camera.

    A data set has the same sheet at every call.

    The compass shows the sphere around the object from above, the front (+z) at the bottom. A dot marks the
    camera: at the rim when it is level with the object, in the middle when it is above, hollow when below.

    Raises:
        UserError: the set has no cameras, a shard cannot be read or an image is broken.
    """
    check_trainable(manifest, where=uri)
    rows = randomness.permutation(0, "contact sheet", size=manifest.count)[:_TILES]
    tiles = read_rows(uri, manifest, rows)
    yaw, pitch, _ = yaw_pitch_radius(np.array([camera for _, camera in tiles]))
    lines = math.ceil(len(rows) / _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _TILE, lines * (_TILE + _STRIP)), "white")
    canvas = ImageDraw.Draw(sheet)
    smooth = Image.Resampling.LANCZOS if manifest.resolution > _TILE else Image.Resampling.NEAREST
    for place, (row, (data, _)) in enumerate(zip(rows, tiles, strict=True)):
        left, top = place % _COLUMNS * _TILE, place // _COLUMNS * (_TILE + _STRIP)
        tile = open_image(data, f"row {row} of {uri}").convert("RGB")
        sheet.paste(tile.resize((_TILE, _TILE), smooth), (left, top))
        _draw_compass(canvas, left + 20, top + _TILE + _STRIP // 2, float(yaw[place]), float(pitch[place]))
        label = f"yaw {math.degrees(yaw[place]):+.0f}°\npitch {math.degrees(pitch[place]):+.0f}°"
        canvas.multiline_text((left + 44, top + _TILE + 4), label, fill="black", spacing=2)
    sink = io.BytesIO()
    sheet.save(sink, format="PNG")
    return sink.getvalue()


def _draw_compass(canvas: ImageDraw.ImageDraw, x: int, y: int, yaw: float, pitch: float) -> None:
    """Draws the compass around the pixel (x, y)."""
    canvas.ellipse((x - _COMPASS, y - _COMPASS, x + _COMPASS, y + _COMPASS), outline=(150, 150, 150))
    canvas.line((x, y, x, y + _COMPASS), fill=(200, 200, 200))
    right = x + _COMPASS * math.sin(yaw) * math.cos(pitch)
    below = y + _COMPASS * math.cos(yaw) * math.cos(pitch)
    canvas.line((right, below, x, y), fill=(200, 60, 40))
    inside = (200, 60, 40) if pitch >= 0 else "white"
    canvas.ellipse((right - 3, below - 3, right + 3, below + 3), fill=inside, outline=(200, 60, 40))
