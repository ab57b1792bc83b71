"""Textures of meshes: found, decoded and read at texture coordinates."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

_MODES_OF_16_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


@dataclass(frozen=True)
class Texture:
    """An image, and what is read outside of it.

    Attributes:
        pixels: (H, W, 4) uint8, RGBA.
        wrap: `repeat`, `clamp` or `mirror`, along the width and the height.
    """

    pixels: np.ndarray
    wrap: tuple[str, str] = ("repeat", "repeat")

    def read(self, places: np.ndarray) -> np.ndarray:
        """(…, 4) float64 in [0, 1]: the nearest pixels; places (…, 2) count from the top left, 1 is a side.

        Raises:
            ValueError: a place is not finite.
        """
        if not np.isfinite(places).all() or np.abs(places).max(initial=0) > 1e9:
            raise ValueError("it has texture coordinates that are not finite or far beyond any texture")
        height, width = self.pixels.shape[:2]
        column = _pixel(places[..., 0], width, self.wrap[0])
        row = _pixel(places[..., 1], height, self.wrap[1])
        return self.pixels[row, column].astype(np.float64) / 255


def _pixel(place: np.ndarray, size: int, wrap: str) -> np.ndarray:
    if wrap == "repeat":
        place = place % 1.0
    elif wrap == "mirror":
        place = 1 - np.abs(place % 2.0 - 1)
    return np.clip((place * size).astype(np.int64), 0, size - 1)


def decode_texture(data: bytes, name: str) -> np.ndarray:
    """(H, W, 4) uint8, RGBA, of an image file.

    Args:
        name: of the texture, for error messages.
    Raises:
        ValueError: it is empty, broken, of a format that is not known, or has too many pixels.
    """
    if not data:
        raise ValueError(f"its texture {name} has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\d+", str(error))
        count = found[0] if found else "too many"
        raise ValueError(
            f"its texture {name} has {count} pixels, the limit is {Image.MAX_IMAGE_PIXELS}"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        cause = "it is truncated" if "truncated" in str(error) else "it is broken, or no image"
        raise ValueError(f"its texture {name} cannot be read ({cause})") from error
    if image.mode == "F":
        raise ValueError(f"its texture {name} holds floating-point numbers: convert it to 8 bits")
    if image.mode in _MODES_OF_16_BITS:
        grey = np.clip(np.asarray(image).astype(np.float64) / 257, 0, 255).round().astype(np.uint8)
        return np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    return np.asarray(image.convert("RGBA"))


def find_file(folder: Path, name: str) -> Path | None:
    """The file that a mesh's file in `folder` calls `name`.

    Backslashes separate folders, and letters' case is ignored where no file has the very name. Of a path on
    another machine, absolute or upwards, the last part is looked for beside the mesh.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts:
        return None
    absolute = name.startswith(("/", "\\")) or name[1:2] == ":"
    if not absolute and (found := _descend(folder, parts)) is not None:
        return found
    return _descend(folder, parts[-1:])


def _descend(folder: Path, parts: list[str]) -> Path | None:
    place = folder
    for part in parts:
        if part == ".." or (place / part).exists():
            place = place / part
            continue
        try:
            same = sorted(each for each in place.iterdir() if each.name.lower() == part.lower())
        except OSError:
            return None
        if not same:
            return None
        place = same[0]
    return place if place.is_file() else None
