"""Textures of meshes: found, decoded and read at texture coordinates."""

from __future__ import annotations

import io
import re
import unicodedata
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
        if other := other_than_expected(data):
            cause = f"it is broken, or no image: it {other}"
        raise ValueError(f"its texture {name} cannot be read ({cause})") from error
    if image.mode == "F":
        raise ValueError(f"its texture {name} holds floating-point numbers: convert it to 8 bits")
    if image.mode in _MODES_OF_16_BITS:
        grey = np.clip(np.asarray(image).astype(np.float64) / 257, 0, 255).round().astype(np.uint8)
        return np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    return np.asarray(image.convert("RGBA"))


def other_than_expected(data: bytes) -> str | None:
    """Names a web page or a Git LFS pointer in place of a file, to end a sentence; None for other bytes."""
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "is a web page: download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS: run `git lfs pull`"
    return None


def find_file(folder: Path, name: str) -> Path | None:
    """The file that a mesh's file in `folder` calls `name`.

    Backslashes separate folders; where no file has the very name, letters' case is ignored, and whether an
    accent is a character of its own. Of a path on another machine, absolute or upwards, the last part is
    looked for beside the mesh.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or "\0" in name:
        return None
    absolute = name.startswith(("/", "\\")) or name[1:2] == ":"
    if not absolute and (found := _descend(folder, parts)) is not None:
        return found
    return _descend(folder, parts[-1:])


def _descend(folder: Path, parts: list[str]) -> Path | None:
    place = folder
    try:
        for part in parts:
            if part == ".." or (place / part).exists():
                place = place / part
                continue
            same = [each for each in place.iterdir() if _plain(each.name) == _plain(part)]
            # A file whose name differs in its accents' form only goes before one in another case.
            exact = unicodedata.normalize("NFC", part)
            place = min(same, key=lambda each: (unicodedata.normalize("NFC", each.name) != exact, each))
        return place if place.is_file() else None
    except (OSError, ValueError):  # no such folder, a name that no file can have, or nothing alike
        return None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).lower())
