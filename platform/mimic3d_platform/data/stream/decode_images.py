"""Decoding image files to pixels, with the fastest decoder that is installed."""

from __future__ import annotations

import io

import numpy as np

try:
    import pyspng  # libspng: up to twice as fast as Pillow; it has wheels for x86-64 only
except ImportError:
    pyspng = None

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class BadImageError(ValueError):
    """The bytes are not an image, or one of another size; the message, such as "holds …", follows a name."""


def decode_image(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8, RGB, of a PNG, JPEG or WebP file.

    Raises:
        BadImageError: the file is of another format, or damaged.
    """
    if pyspng is not None and data[:8] == _PNG_SIGNATURE:
        try:
            pixels = pyspng.load(data)
        except Exception:  # It has no error class of its own. If the file is damaged, Pillow says how.
            pixels = None
        if pixels is not None and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
            return pixels
    from PIL import Image  # here, since a loader process that decodes with libspng does not need it

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError("holds no readable image") from error


def decode_into(data: bytes, out: np.ndarray) -> None:
    """Decodes into `out`, (3, R, R) uint8.

    Raises:
        BadImageError: as `decode_image`, or the image is not R×R.
    """
    pixels = decode_image(data)
    side = out.shape[1]
    if pixels.shape != (side, side, 3):
        height, width = pixels.shape[:2]
        raise BadImageError(f"holds an image of {width}×{height}, not {side}×{side}")
    out[:] = pixels.transpose(2, 0, 1)
