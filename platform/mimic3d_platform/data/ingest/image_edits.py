"""Image files on their way into a data set: checked, and changed only where an option asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageOps

from mimic3d_platform.data.format.image_files import encode_png, open_image
from mimic3d_platform.errors import UserError

BACKGROUNDS = ("white", "black")
MOST_PIXELS = 8192

_LARGEST_SQUARE = -1


@dataclass(frozen=True)
class Edit:
    """The changes made to every image.

    Attributes:
        crop: side of a centred square in pixels; -1 for the largest square; 0 for no crop.
        resize: side of the result in pixels; 0 for no resizing.
        background: `white` or `black` behind transparent pixels; empty if those are an error.
    """

    crop: int = 0
    resize: int = 0
    background: str = ""


@dataclass(frozen=True)
class EditedImage:
    """An image as it is stored in a row.

    Attributes:
        data: the source's bytes, or a PNG file if the image was changed.
        side: R, pixels.
        width, height: of the source's image.
        left, top, square: the square of the source's image that is kept.
    """

    data: bytes
    changed: bool
    pixels: Image.Image
    side: int
    width: int
    height: int
    left: int
    top: int
    square: int

    @property
    def cropped(self) -> bool:
        """Whether a part of the source's image was cut off."""
        return self.square != self.width or self.square != self.height

    def mirrored(self) -> bytes:
        """A PNG file of the image with left and right exchanged."""
        return encode_png(ImageOps.mirror(self.pixels.convert("RGB")))


def parse_crop(text: str | None) -> int:
    """The `Edit.crop` of the option `--crop`: `square` or a number of pixels.

    Raises:
        UserError: it is neither.
    """
    if text is None:
        return 0
    if text == "square":
        return _LARGEST_SQUARE
    if not text.isdecimal() or not 0 < int(text) <= MOST_PIXELS:
        raise UserError(f"--crop {text}: give `square`, or a number of pixels from 1 to {MOST_PIXELS}")
    return int(text)


def edit_image(data: bytes, edit: Edit, where: str) -> EditedImage:
    """Decodes an image file and applies an edit; the bytes stay the source's where nothing changes.

    Args:
        where: what names the file in error messages.
    Raises:
        UserError: as `open_image`; the image is not square or smaller than the crop, or has transparent
            pixels and no background is set.
    """
    image = open_image(data, where)
    width, height = image.size
    pixels = image
    if _is_transparent(image):
        if not edit.background:
            raise UserError(f"{where} has transparent pixels: use --background white or --background black")
        background = Image.new("RGBA", image.size, edit.background)
        pixels = Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    left, top, square = _square(width, height, edit.crop, where)
    if square != width or square != height:
        pixels = pixels.convert("RGB").crop((left, top, left + square, top + square))
    side = edit.resize or square
    if side != square:
        pixels = pixels.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    changed = pixels is not image
    stored = encode_png(pixels) if changed else data
    return EditedImage(stored, changed, pixels, side, width, height, left, top, square)


def _square(width: int, height: int, crop: int, where: str) -> tuple[int, int, int]:
    """Left, top and side of the square that is kept."""
    if not crop and width != height:
        raise UserError(f"{where} is {width}×{height} and not square: use --crop square")
    square = min(width, height) if crop in (0, _LARGEST_SQUARE) else crop
    if square > min(width, height):
        raise UserError(f"{where} is {width}×{height}, smaller than the crop of {crop}: crop less")
    return (width - square) // 2, (height - square) // 2, square


def _is_transparent(image: Image.Image) -> bool:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return lowest < 255  # type: ignore[operator]  # 8-bit channels have integers
