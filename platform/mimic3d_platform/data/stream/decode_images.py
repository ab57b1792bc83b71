"""From the bytes of an image file to pixels, by the fastest decoder that is there."""

from __future__ import annotations

import io

import numpy as np

try:
    import pyspng  # libspng: up to twice as fast as Pillow; there are wheels for x86-64 alone
except ImportError:
    pyspng = None

_PNG = b"\x89PNG\r\n\x1a\n"


class BadImage(ValueError):
    """Bytes that are no image, or one of another size; the message says which."""


def decode_image(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8, RGB, of a PNG, JPEG or WebP file.

    Raises:
        BadImage: it is none of them, or damaged.
    """
    if pyspng is not None and data[:8] == _PNG:
        try:
            pixels = pyspng.load(data)
        except Exception:  # It has no error class of its own; Pillow says what is wrong with the file, if so.
            pixels = None
        if pixels is not None and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
            return pixels
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage("holds no readable image") from error


def decode_into(data: bytes, out: np.ndarray) -> None:
    """Decodes into `out`, (3, R, R) uint8.

    Raises:
        BadImage: as `decode_image`, or the image is not R×R.
    """
    pixels = decode_image(data)
    side = out.shape[1]
    if pixels.shape != (side, side, 3):
        height, width = pixels.shape[:2]
        raise BadImage(f"holds an image of {width}×{height}, not {side}×{side}")
    out[:] = pixels.transpose(2, 0, 1)
