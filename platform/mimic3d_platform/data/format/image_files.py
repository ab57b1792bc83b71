"""Image files of data sets: decoding them completely, encoding PNG, their file name suffix."""

from __future__ import annotations

import io
import re
import warnings

from PIL import Image

from mimic3d_platform.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")

_COMPRESSION = 4


def open_image(data: bytes, where: str) -> Image.Image:
    """An image file, decoded to its last pixel.

    Args:
        where: what names the file in error messages.
    Raises:
        UserError: as `load_image`; or it has more than 8 bits per channel.
    """
    image = load_image(data, where)
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{where} has more than 8 bits per channel: convert it to 8 bits")
    return image


def load_image(data: bytes, where: str) -> Image.Image:
    """Opens an image like `open_image`, with any number of bits per channel.

    Raises:
        UserError: it is broken, truncated, of another format, or has more pixels than Pillow reads.
    """
    image = _open(data, where)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(data, where, error) from error
    return image


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height of an image file, of which only the header is read.

    Raises:
        UserError: as `load_image`.
    """
    return _open(data, where).size


def _open(data: bytes, where: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\d+", str(error))
        count = found[0] if found else "too many"
        raise UserError(
            f"{where} has {count} pixels and the limit is {Image.MAX_IMAGE_PIXELS}: make it smaller"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise _unreadable(data, where, error) from error


def _unreadable(data: bytes, where: str, error: Exception) -> UserError:
    """The error of an image file, with what its first bytes tell."""
    start = data[:64].lstrip().lower()
    if not data:
        cause = "it has no bytes"
    elif start.startswith((b"<!doctype", b"<html")):
        cause = "it is broken, or not PNG, JPEG or WebP: it is a web page"
    elif start.startswith(b"version https://git-lfs"):
        cause = "it is broken, or not PNG, JPEG or WebP: it is a pointer of Git LFS; run `git lfs pull`"
    else:
        cause = "it is truncated" if "truncated" in str(error) else "it is broken, or not PNG, JPEG or WebP"
    return UserError(f"{where} is not a readable image ({cause}): replace it")


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
