"""Lenses of NeRF's `transforms.json`: which keys are read, refused or ignored.

A key that changes what a number means must be known: an unknown one whose name says lens, unit or axes is
refused by its name. Keys that say other things are ignored, and logged once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mimic3d_platform.errors import UserError

# Along each axis: pixels, an angle in degrees (instant-ngp), an angle in radians; in the order of precedence.
_FOCALS = (("fl_x", "x_fov", "camera_angle_x"), ("fl_y", "y_fov", "camera_angle_y"))
_PLACES = ("cx", "cy", "w", "h")
# Other programs' names of the same numbers.
_ALIASES = {"width": "w", "image_width": "w", "height": "h", "image_height": "h"}
_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "p3", "p4", "s1", "s2", "s3", "s4", "skew")
_NUMBERS = (*_FOCALS[0], *_FOCALS[1], *_PLACES, *_DISTORTION)
# Camera models that are pinholes where their distortion is 0; compared without case, `-` and `_`.
_PINHOLES = {"pinhole", "simplepinhole", "perspective", "opencv", "fullopencv", "simpleradial", "radial"}
_MODELS = ("camera_model", "camera_type", "lens_model", "lens_type")
# Keys that change what numbers mean: refused unless they are 0, false or empty.
_OTHER_LENSES = re.compile(
    r"fisheye|ftheta|latlong|equirect|ortho(?!.*override)|panoram|spherical|omnidirectional|distort|shutter"
)
# Keys whose values may name a lens, and the names of lenses that are no pinholes.
_MAY_NAME_LENS = re.compile(r"project|cam|model|type|lens")
_LENS_NAMES = re.compile(
    _OTHER_LENSES.pattern + r"|^pano$|^fov$|thin_prism|division|kannala|unified|mei$|eucm"
)
# Names of unknown keys that say lens, unit or axes.
_MEANING = re.compile(
    r"^[kps]\d+$|^tau|^xi$|^(f|fx|fy|focal|fov|hfov|vfov|aperture)$|focal|fov|lens|intrinsic|sensor|shift|"
    r"skew|shear|unit|degree|radian|convention|coord|handed|axes|axis|angle|crop|resize|"
    r"^K$|^from_(na|mitsuba)$|pixel_aspect|aspect_ratio|stereo|principal|pixel_cent|^fl(_|$)|undistort|"
    r"dist_coef|^D$|radial|tangential|^omega$|^b[12]$|kannala|^cent(er|re)_[xy]$|^pp[xy]$|^c_[xy]$|film|"
    r"camera_matrix|downscale|scale_factor|zoom|w2c|pose_type|world_to|world2|extrinsic|opencv|flip|mirrored|"
    r"transposed|world_up|readout|opengl|^transform_matrix_"
)
# Keys that are true or false of poses; those in a format's `usual` values have to be true.
_POSES = re.compile(r"^(?:is_)?(opengl|opencv|c2w|cam2world|camera_to_world)$")
# Values of such keys that say what is assumed anyway.
_USUAL = {
    "opengl",
    "c2w",
    "cam2world",
    "cameratoworld",
    "nerf",
    "blender",
    "nerfstudio",
    "radians",
    "radian",
    "pixels",
    "pixel",
    "right",
    "righthanded",
}
# Keys of no effect on a camera: names, records of what was done, other programs' settings.
_KNOWN_IDLE = {"frames", "file_path", "transform_matrix", "rotation", "sharpness", "colmap_im_id"}
_WITHOUT_MEANING = {
    "applied_transform",
    "applied_scale",
    "aabb_scale",
    "orientation_override",
    "integer_depth_scale",
    "depth_unit_scale_factor",
    "undistorted",
    "is_undistorted",
}
# Pinholes of other focal lengths, in image widths, see more than 136° or less than 2°: the units are wrong.
_LEAST_FOCAL, _MOST_FOCAL = 0.2, 30.0


@dataclass(frozen=True)
class Lens:
    """Focal lengths and principal point in image sizes, and the image's size in pixels."""

    intrinsics: tuple[float, float, float, float]
    size: tuple[int, int]


def ignored_keys(objects: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of a file and its frames that are ignored and are worth a line."""
    known = {*_NUMBERS, *_ALIASES, *_MODELS, *_KNOWN_IDLE}
    found = {key for each in objects for key in each}
    return sorted(key for key in found if key not in known and not _OTHER_LENSES.search(key.lower()))


def read_lens(
    content: Mapping[str, Any],
    frame: Mapping[str, Any],
    where: str,
    image_size: Callable[[], tuple[int, int]],
) -> Lens:
    """The lens of a frame; the frame's keys come before those of the whole file.

    Args:
        where: what names the frame in error messages.
        image_size: reads the image's width and height, where the file does not give them.
    Raises:
        UserError: the lens is no pinhole, or distorted; a key about it is unknown; numbers contradict.
    """
    content, frame = _without_aliases(content, where), _without_aliases(frame, where)
    values = {**content, **frame}
    focals = (*_FOCALS[0], *_FOCALS[1])
    if any(frame.get(key) is not None for key in focals):
        # A frame's focal lengths are not mixed with those of the whole file.
        values |= {key: frame.get(key) for key in focals}
    refuse_meanings(values, where)
    for key in _NUMBERS:
        if values.get(key) is not None and not _is_number(values[key]):
            raise UserError(f"{where} has a {key} that is not a number: correct it")
    if distorted := [key for key in _DISTORTION if abs(values.get(key) or 0) > 1e-9]:
        raise UserError(
            f"{where} has a distorted lens ({', '.join(distorted)}): undistort the images first, with "
            "`colmap image_undistorter` for example"
        )
    width, height = values.get("w"), values.get("h")
    if bool(width) != bool(height):
        raise UserError(f"{where} has {'w without h' if width else 'h without w'}: give both, or neither")
    if not width or not height:
        width, height = image_size()
    if width < 1 or height < 1:
        raise UserError(f"{where} has a size of {width}×{height}: give w and h in pixels")
    fx = _focal(values, _FOCALS[0], width, where)
    fy = _focal(values, _FOCALS[1], height, where)
    if fx is None and fy is None:
        raise UserError(f"{where} has neither fl_x nor camera_angle_x: add one, for its focal length")
    if fx is None:
        assert fy is not None
        fx = fy * height / width  # square pixels
    if fy is None:
        fy = fx * width / height
    cx, cy = values.get("cx"), values.get("cy")
    small = [value for value in (cx, cy) if value is not None and 0 < value <= 1]
    if small and min(width, height) > 2:
        raise UserError(
            f"{where} has a principal point of {small[0]:g} and an image of {width:g}×{height:g}: "
            "give cx and cy in pixels"
        )
    centre = (cx / width if cx is not None else 0.5, cy / height if cy is not None else 0.5)
    return Lens((fx, fy, *centre), (int(width), int(height)))


def _focal(values: Mapping[str, Any], keys: tuple[str, str, str], size: float, where: str) -> float | None:
    """The focal length in image sizes that an axis's keys give; None if there is none of them."""
    pixels, degrees, radians = keys
    found: dict[str, float] = {}
    if values.get(pixels):
        found[pixels] = values[pixels] / size
    for key, angle in (
        (degrees, math.radians(values.get(degrees) or 0)),
        (radians, values.get(radians) or 0),
    ):
        if not angle:
            continue
        if not 0 < angle < math.pi:
            limit = "between 0 and 180 degrees" if key == degrees else "in radians, between 0 and π"
            raise UserError(
                f"{where} has a {key} of {values[key]:g}, which is no angle of view: give it {limit}"
            )
        found[key] = 0.5 / math.tan(angle / 2)
    if not found:
        return None
    first, focal = next(iter(found.items()))
    for key, other in found.items():
        if abs(other - focal) > 0.02 * abs(focal):
            raise UserError(
                f"{where} has a {first} and a {key} that contradict each other (focal lengths of {focal:.4g} "
                f"and {other:.4g} image sizes): remove the wrong one; camera_angle_… is in radians, fl_… in "
                "pixels"
            )
    if focal < _LEAST_FOCAL:
        raise UserError(
            f"{where} has a {first} of {values[first]:g}, a focal length of {focal:.4g} image sizes: no "
            "lens sees so wide; give fl_… in pixels and camera_angle_… in radians"
        )
    if focal > _MOST_FOCAL:
        raise UserError(
            f"{where} has a {first} of {values[first]:g}, a focal length of {focal:.4g} image sizes: no "
            "lens sees so little; give fl_… in pixels, x_fov in degrees and camera_angle_… in radians"
        )
    return focal


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floating-point numbers
        return False


def _without_aliases(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values with their sizes under `w` and `h`."""
    found = {key: value for key, value in values.items() if key not in _ALIASES}
    for alias, key in _ALIASES.items():
        if alias in values:
            if found.get(key) not in (None, values[alias]):
                raise UserError(f"{where} has a {key} and a {alias} that differ: remove the wrong one")
            found[key] = values[alias]
    return found


def refuse_meanings(values: Mapping[str, Any], where: str, usual: Collection[str] = _USUAL) -> None:
    """Raises a UserError for a key that makes the lens another one, or that is about it and unknown.

    Args:
        usual: values of such keys that say what the format says anyway, in lower case without `-` and `_`.
    """
    for key, value in values.items():
        said = _POSES.search(key.lower())
        if said and said[1].replace("_", "") in usual and isinstance(value, bool):
            if value:
                continue
            raise UserError(
                f"{where} has {key}: false, but poses are read as if it were true: convert them and remove it"
            )
        if _is_idle(value) or key in _NUMBERS or key in _WITHOUT_MEANING:
            continue
        names_lens = isinstance(value, str) and "/" not in value and _MAY_NAME_LENS.search(key.lower())
        if names_lens and _LENS_NAMES.search(value.lower()):
            raise UserError(
                f"{where} has the lens {value} ({key}), which is no pinhole or not known: make pinhole "
                "images first, with `colmap image_undistorter` for example"
            )
        if key in _MODELS:
            if re.sub(r"[-_ ]", "", str(value)).lower() not in _PINHOLES:
                raise UserError(
                    f"{where} has the lens {value} ({key}), which is no pinhole or not known: make pinhole "
                    "images first, with `colmap image_undistorter` for example"
                )
        elif _OTHER_LENSES.search(key.lower()):
            raise UserError(
                f"{where} has a lens that is no pinhole ({key}): make pinhole images first, with "
                "`colmap image_undistorter` for example"
            )
        elif _MEANING.search(key) or _MEANING.search(key.lower()):
            if isinstance(value, str) and re.sub(r"[-_ ]", "", value).lower() in usual:
                continue
            raise UserError(
                f"{where} has the key {key}, which says something of its lens, units or axes and is not "
                "known: give fl_x and fl_y in pixels, or camera_angle_x in radians, and remove it"
            )


def _is_idle(value: object) -> bool:
    """Whether a value says nothing: null, false, empty, or zeros alone."""
    if isinstance(value, list | tuple):
        return all(_is_idle(item) for item in value)
    if isinstance(value, Mapping):
        return all(_is_idle(item) for item in value.values())
    return value is None or value is False or value == "" or (isinstance(value, int | float) and value == 0)
