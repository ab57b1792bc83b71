"""Image files on their way into a data set: checked, and changed only where an option asks for it."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from mimic3d_platform.data.format.image_files import encode_png, load_image
from mimic3d_platform.errors import UserError

BACKGROUNDS = ("white", "black")
MOST_PIXELS = 8192

_LARGEST_SQUARE = -1
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # of EXIF
_GREY_OF_16_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


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
        data: the source's bytes, or a PNG file if the image was changed; never with an orientation tag.
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
        return _encode(ImageOps.mirror(self.pixels.convert("RGB")))


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

    The image is stored as 8-bit RGB or grey, as all programs read it: 16 bits become 8, CMYK becomes RGB
    by its profile. Cameras describe the pixels as they are stored: EXIF tags that turn them are taken off.

    Args:
        where: what names the file in error messages.
    Raises:
        UserError: as `load_image`; the image is not square or smaller than the crop, or has transparent
            pixels and no background is set.
    """
    image = load_image(data, where)
    try:
        return _edited(image, data, edit, where)
    except (AssertionError, OSError, SyntaxError, ValueError, struct.error) as error:
        # Pillow checks some parts of a file only where they are used, palettes among them.
        reason = str(error) or type(error).__name__
        raise UserError(f"{where} is damaged ({reason}): replace it") from None


def _edited(image: Image.Image, data: bytes, edit: Edit, where: str) -> EditedImage:
    width, height = image.size
    pixels = _plain(image, data, where)
    if image.mode == "P":
        image.convert("RGB")  # A damaged palette is found here, and not where a mirrored twin is made.
    if _is_transparent(pixels):
        if not edit.background:
            raise UserError(f"{where} has transparent pixels: use --background white or --background black")
        background = Image.new("RGBA", image.size, edit.background)
        pixels = Image.alpha_composite(background, pixels.convert("RGBA")).convert("RGB")
    left, top, square = _square(width, height, edit.crop, where)
    if square != width or square != height:
        pixels = pixels.convert("RGB").crop((left, top, left + square, top + square))
    side = edit.resize or square
    if side != square:
        pixels = pixels.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    stored = data
    if pixels is image and _is_turned(image):
        stored = _without_metadata(data) if image.format == "JPEG" else b""
    changed = pixels is not image or not stored
    if changed:
        stored = _encode(pixels)
    return EditedImage(stored, changed, pixels, side, width, height, left, top, square)


def _is_turned(image: Image.Image) -> bool:
    """True for an EXIF orientation other than upright, and for damaged EXIF, which programs differ on."""
    try:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except (SyntaxError, OSError, ValueError, TypeError, struct.error):
        return True


def _plain(image: Image.Image, data: bytes, where: str) -> Image.Image:
    """The image with 8 bits per channel, as grey or RGB; the same object if it is so already.

    Of an animation, it is the first picture.

    Raises:
        UserError: it holds floating-point numbers, or names a transparent colour of 16 bits.
    """
    transparent = image.info.get("transparency")
    if image.mode in _GREY_OF_16_BITS:
        # Pillow itself reads the upper 8 bits of 16-bit RGB: grey is treated alike.
        numbers = np.asarray(image).astype(np.uint32)
        grey = Image.fromarray((numbers >> 8).astype(np.uint8))
        if transparent is not None:
            grey.putalpha(Image.fromarray(np.where(numbers == transparent, 0, 255).astype(np.uint8)))
        return grey
    if image.mode == "F":
        raise UserError(f"{where} holds floating-point numbers: convert it to 8 bits")
    if image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        return _to_srgb(image)
    if data[:8] == _PNG_SIGNATURE and data[24] == 16:
        if transparent is not None:
            # Pillow has the pixels in 8 bits: which of them had the colour is not known.
            raise UserError(f"{where} has a transparent colour of 16 bits: save it with an alpha channel")
        return image.copy()
    if getattr(image, "n_frames", 1) > 1:
        return image.copy()
    return image


def _to_srgb(image: Image.Image) -> Image.Image:
    """RGB by the image's profile; without one, or with one that cannot be used, by Pillow's formula."""
    profile = image.info.get("icc_profile")
    converted: Image.Image | None = None
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            converted = None
    result = converted or image.convert("RGB")
    result.info.pop("icc_profile", None)
    return result


def _encode(pixels: Image.Image) -> bytes:
    """A PNG file; a colour profile of another kind of image, and tags, are left out.

    So is a transparent colour: no pixel had it, but one that is interpolated may.
    """
    pixels = pixels.copy()
    profile = pixels.info.get("icc_profile")
    space = {"RGB": b"RGB ", "RGBA": b"RGB ", "P": b"RGB ", "L": b"GRAY", "LA": b"GRAY", "1": b"GRAY"}
    kept: dict[str | tuple[int, int], Any] = {}
    if profile and profile[16:20] == space.get(pixels.mode):
        kept["icc_profile"] = profile
    pixels.info = kept
    return encode_png(pixels)


def _without_metadata(data: bytes) -> bytes:
    """A JPEG file without its EXIF and XMP segments (APP1); empty if the file is not as expected."""
    position, parts = 2, [data[:2]]
    while position + 4 <= len(data):
        marker, kind, length = struct.unpack_from(">BBH", data, position)
        if marker != 0xFF:
            return b""
        if kind == 0xDA:  # the compressed pixels follow
            return b"".join([*parts, data[position:]])
        if kind != 0xE1:
            parts.append(data[position : position + 2 + length])
        position += 2 + length
    return b""


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
