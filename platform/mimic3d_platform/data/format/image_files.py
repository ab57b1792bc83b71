"""Image files of data sets: decoding them completely, encoding PNG, their file name suffix."""

from __future__ import annotations

import io

from PIL import Image

from mimic3d_platform.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")

_COMPRESSION = 4


def open_image(data: bytes, where: str) -> Image.Image:
    """An image file, decoded to its last pixel.

    Args:
        where: what names the file in error messages.
    Raises:
        UserError: it is broken, truncated, of another format, or has more than 8 bits per channel.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        cause = "it is truncated" if "truncated" in str(error) else "it is broken, or not PNG, JPEG or WebP"
        raise UserError(f"{where} is not a readable image ({cause}): replace it") from error
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{where} has more than 8 bits per channel: convert it to 8 bits")
    return image


def encode_png(pixels: Image.Image, compression: int = _COMPRESSION) -> bytes:
    """A PNG file; `compression` is zlib's level, 0 to 9."""
    sink = io.BytesIO()
    pixels.save(sink, format="PNG", compress_level=compression)
    return sink.getvalue()


def suffix_of(data: bytes) -> str:
    """The file name suffix of a PNG, JPEG or WebP file, by its first bytes."""
    if data[:3] == b"\xff\xd8\xff":
        return ".jpg"
    return ".webp" if data[8:12] == b"WEBP" else ".png"
