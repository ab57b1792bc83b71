"""Image files on their way into a data set: read whole, judged, and changed only where that was asked for."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
BACKGROUNDS = ("white", "black")
LARGEST_SIDE = 8192

_WHOLE = -1
_COMPRESSION = 4


@dataclass(frozen=True)
class Edit:
    """What is done to every image.

    Attributes:
        crop: the side of a centred square in pixels; -1 for the largest; 0 for none.
        resize: the side of the result in pixels; 0 leaves it.
        background: `white` or `black` behind transparent pixels; empty refuses them.
    """

    crop: int = 0
    resize: int = 0
    background: str = ""


@dataclass(frozen=True)
class Picture:
    """An image as it goes into a row.

    Attributes:
        data: the file's bytes: those given, or a PNG file where something was changed.
        side: R, pixels.
        width, height: of the image as given.
        left, top, square: the part of it that is shown.
    """

    data: bytes
    changed: bool
    pixels: Image
    side: int
    width: int
    height: int
    left: int
    top: int
    square: int

    def mirrored(self) -> bytes:
        """A PNG file of the image with left and right exchanged."""
        from PIL import ImageOps

        return encode(ImageOps.mirror(self.pixels.convert("RGB")))


def parse_crop(text: str | None) -> int:
    """`Edit.crop` of what a user writes: `square` or a number of pixels.

    Raises:
        UserError: it is neither.
    """
    if text is None:
        return 0
    if text == "square":
        return _WHOLE
    if not text.isdecimal() or not 0 < int(text) <= LARGEST_SIDE:
        raise UserError(f"--crop {text}: give `square`, or a number of pixels from 1 to {LARGEST_SIDE}")
    return int(text)


def open_picture(data: bytes, where: str) -> Image:
    """An image file decoded to its last pixel.

    Raises:
        UserError: it is broken, cut short, of another format, or of more than 8 bits a channel.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        cause = "it is cut short" if "truncated" in str(error) else "it is broken, or no PNG, JPEG or WebP"
        raise UserError(f"{where} is no readable image ({cause}): replace it") from error
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{where} has more than 8 bits a channel: convert it to 8 bits")
    return image


def prepare(data: bytes, edit: Edit, where: str) -> Picture:
    """Reads an image file and changes it as `edit` says; the bytes are those given where nothing changes.

    Raises:
        UserError: as `open_picture`; it is not square or too small for the crop, or has transparent pixels
            and no background is set.
    """
    from PIL import Image

    image = open_picture(data, where)
    width, height = image.size
    pixels = image
    if _is_transparent(image):
        if not edit.background:
            raise UserError(f"{where} has transparent pixels: say --background white or --background black")
        behind = Image.new("RGBA", image.size, edit.background)
        pixels = Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")
    left, top, square = _square(width, height, edit.crop, where)
    if square != width or square != height:
        pixels = pixels.convert("RGB").crop((left, top, left + square, top + square))
    side = edit.resize or square
    if side != square:
        pixels = pixels.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    changed = pixels is not image
    return Picture(
        encode(pixels) if changed else data, changed, pixels, side, width, height, left, top, square
    )


def _square(width: int, height: int, crop: int, where: str) -> tuple[int, int, int]:
    """Left, top and side of the square that is shown."""
    if not crop and width != height:
        raise UserError(f"{where} is {width}×{height} and not square: say --crop square")
    square = min(width, height) if crop in (0, _WHOLE) else crop
    if square > min(width, height):
        raise UserError(f"{where} is {width}×{height}, smaller than the crop of {crop}: crop less")
    return (width - square) // 2, (height - square) // 2, square


def _is_transparent(image: Image) -> bool:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def suffix_of(data: bytes) -> str:
    """The file name's ending for an image file, by its first bytes."""
    if data[:3] == b"\xff\xd8\xff":
        return ".jpg"
    return ".webp" if data[8:12] == b"WEBP" else ".png"


def encode(pixels: Image) -> bytes:
    """A PNG file."""
    sink = io.BytesIO()
    pixels.save(sink, format="PNG", compress_level=_COMPRESSION)
    return sink.getvalue()
