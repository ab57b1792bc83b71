"""The form of COLMAP's sparse models: `cameras` and `images` files, text or binary, beside the images.

COLMAP stores world-to-camera rotations as quaternions (w, x, y, z) and translations, in OpenCV's axes; the
camera-to-world pose is the inverse. Focal lengths and principal points are in pixels, and pixel centres are
at halves, as in this project. Distorted lenses are an error: `colmap image_undistorter` removes distortion.
"""

from __future__ import annotations

import logging
import posixpath
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mimic3d_platform.data.format.camera_labels import make_labels
from mimic3d_platform.data.format.rotations import rotation_matrix
from mimic3d_platform.data.ingest.listing import Listing, identities_of, match_images, scene_name
from mimic3d_platform.data.ingest.source_files import Source, is_image
from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")

_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "")
LISTINGS = tuple(
    posixpath.join(folder, f"images{suffix}") for folder in _FOLDERS for suffix in (".bin", ".txt")
)
# Where programs keep the pictures of a model, beside the folder `sparse`; the largest come first.
_PICTURES = ("images", "input", "rgb", "image", "images_2", "images_4", "images_8", "")

# Name and number of parameters of COLMAP's camera models, in the order of their numbers.
_MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    ("SIMPLE_DIVISION", 4),
    ("DIVISION", 5),
)
# Models that are pinholes if their last parameters are 0, and how many of their parameters are focal lengths.
_FOCALS = {
    "SIMPLE_PINHOLE": 1,
    "PINHOLE": 2,
    "SIMPLE_RADIAL": 1,
    "RADIAL": 1,
    "OPENCV": 2,
    "FULL_OPENCV": 2,
    "SIMPLE_DIVISION": 1,
    "DIVISION": 2,
}


@dataclass(frozen=True)
class _Camera:
    model: str
    width: int
    height: int
    parameters: tuple[float, ...]


@dataclass(frozen=True)
class _Image:
    """A registered image: its world-to-camera quaternion (w, x, y, z) and translation."""

    name: str
    camera: int
    rotation: tuple[float, ...]
    translation: tuple[float, ...]


def read(source: Source, place: str, *, by_folder: bool | None, partial: bool, named: bool) -> Listing:
    """The listing of a source whose model's images file is at `place`.

    Raises:
        UserError: a file is damaged, a lens is distorted or unknown, or a registered image is missing and
            `partial` is not set.
    """
    folder, suffix = posixpath.dirname(place), posixpath.splitext(place)[1]
    beside = posixpath.join(folder, f"cameras{suffix}")
    if beside not in source.entries:
        raise UserError(f"{source.uri} has {place} but not {beside}: copy the whole model")
    read_cameras, read_images = (
        (_cameras_binary, _images_binary) if suffix == ".bin" else (_cameras_text, _images_text)
    )
    cameras = _parse(read_cameras, source, beside)
    images = _parse(read_images, source, place)
    if not images:
        raise UserError(f"{place} of {source.uri} has no registered image: run COLMAP's mapper first")
    lenses, poses, sizes = [], [], []
    for image in images:
        if image.camera not in cameras:
            raise UserError(f"{place} of {source.uri} names a camera {image.camera} that {beside} lacks")
        camera = cameras[image.camera]
        lenses.append(_lens(camera, f"camera {image.camera} of {beside} of {source.uri}"))
        sizes.append((camera.width, camera.height))
        if not np.linalg.norm(image.rotation) > 1e-6:
            raise UserError(
                f"{place} of {source.uri} has the rotation {' '.join(f'{x:g}' for x in image.rotation)} for "
                f"{image.name}, which is no quaternion: correct it"
            )
        poses.append(_camera_to_world(image))
    if not named:
        _mention_larger_models(source, place, len(images), read_images)
    names = [image.name for image in images]
    image_folder = _picture_folder(source, place, names)
    matched = match_images(source, image_folder, names, place, partial)
    registered = set(matched.entries)
    below = f"{image_folder}/" if image_folder else ""
    scene = scene_name(source)
    return Listing(
        form="colmap",
        entries=matched.entries,
        names=matched.names,
        labels=make_labels(np.stack(poses), np.array(lenses))[matched.kept],
        sizes=np.array(sizes, dtype=np.int64)[matched.kept],
        identities=(
            [scene] * len(matched.names) if by_folder is None else identities_of(matched.names, by_folder)
        ),
        # Images that COLMAP could not register are usual: they are no error.
        left_out=matched.missing
        + [
            name
            for name in source.entries
            if is_image(name) and name.startswith(below) and name not in registered
        ],
    )


def _picture_folder(source: Source, place: str, names: list[str]) -> str:
    """The folder that holds most of the images `names`, of those where programs keep them.

    Raises:
        UserError: no folder holds any.
    """
    model = posixpath.dirname(place)
    ends = [folder for folder in _FOLDERS if folder and f"/{model}".endswith(f"/{folder}")]
    top = model[: len(model) - len(ends[0])].rstrip("/") if ends else model
    if not ends and re.fullmatch(r"(.*/)?sparse/\d+", model):
        top = posixpath.dirname(posixpath.dirname(model))
    folders = [posixpath.join(top, name).rstrip("/") for name in _PICTURES]
    counts = [sum(source.within(folder, name) is not None for name in names) for folder in folders]
    best = counts.index(max(counts))
    if not counts[best]:
        looked = ", ".join(f"{folder}/" if folder else "the top" for folder in folders)
        raise UserError(
            f"the source lacks all {len(names)} images that {place} of {source.uri} lists: "
            f"looked in {looked}; put them into {posixpath.join(top, 'images')}/"
        )
    if best and _PICTURES[best]:
        log.warning("%s: the pictures are those of %s/", source.uri, folders[best])
    return folders[best]


def _mention_larger_models(
    source: Source, place: str, count: int, read_images: Callable[[bytes], list[_Image]]
) -> None:
    """Logs models beside the one at `place` with more images: COLMAP writes one for each connected part."""
    folder, file = posixpath.split(place)
    above = posixpath.dirname(folder)
    pattern = re.compile(rf"{re.escape(posixpath.join(above, ''))}\d+/{re.escape(file)}")
    for other in source.entries:
        if not posixpath.basename(folder).isdigit() or other == place or not pattern.fullmatch(other):
            continue
        try:
            more = len(_parse(read_images, source, other))
        except UserError as error:
            log.warning("%s; it is not needed, as %s is read", error, place)
            continue
        if more > count:
            log.warning(
                "%s: %s has %d images and %s, which is read, has %d; --cameras %s reads the other",
                source.uri,
                other,
                more,
                place,
                count,
                other,
            )


def _parse(parser: Callable[[bytes], Parsed], source: Source, place: str) -> Parsed:
    try:
        return parser(source.read(place))
    except (struct.error, ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{place} of {source.uri} is damaged or not a COLMAP file ({_reason(error)}): copy it again"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, struct.error):
        return "it ends in the middle"
    return str(error) or type(error).__name__


def _lens(camera: _Camera, where: str) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in image sizes."""
    focals = _FOCALS.get(camera.model)
    if camera.model not in dict(_MODELS):
        raise UserError(
            f"{where} has a lens of the model {camera.model}, which is not known: undistort the images "
            "first, with `colmap image_undistorter`"
        )
    distortion = [value for value in camera.parameters[(focals or 0) + 2 :] if abs(value) > 1e-9]
    if focals is None or distortion:
        raise UserError(
            f"{where} has a distorted lens ({camera.model}): undistort the images first, with "
            "`colmap image_undistorter`"
        )
    fx, fy = camera.parameters[0], camera.parameters[focals - 1]
    cx, cy = camera.parameters[focals : focals + 2]
    width, height = camera.width, camera.height
    if width < 1 or height < 1:
        raise UserError(f"{where} has a size of {width}×{height}: correct it")
    return fx / width, fy / height, cx / width, cy / height


def _camera_to_world(image: _Image) -> np.ndarray:
    w, x, y, z = np.array(image.rotation) / np.linalg.norm(image.rotation)
    rotation = rotation_matrix(w, x, y, z)
    pose = np.eye(4)
    pose[:3, :3] = rotation.T
    pose[:3, 3] = -rotation.T @ np.array(image.translation)
    return pose


def _lines(data: bytes) -> list[str]:
    return [line for line in data.decode("utf-8-sig").splitlines() if not line.startswith("#")]


def _cameras_text(data: bytes) -> dict[int, _Camera]:
    cameras = {}
    for line in _lines(data):
        if words := line.split():
            parameters = tuple(float(word) for word in words[4:])
            model = words[1].upper()
            count = dict(_MODELS).get(model, len(parameters))
            if len(parameters) != count:
                raise ValueError(
                    f"{words[1]} has {count} parameters, and the line {line!r} {len(parameters)}"
                )
            cameras[int(words[0])] = _Camera(model, int(words[2]), int(words[3]), parameters)
    return cameras


def _images_text(data: bytes) -> list[_Image]:
    """A line for each image: pose, camera and name. Lines of its points, threes of numbers, are skipped."""
    images = []
    for line in _lines(data):
        words = line.split(maxsplit=9)
        if not words or (_are_points(line.split()) and not _lacks_name(words)):
            continue
        if len(words) < 10:
            raise ValueError(f"its line {line[:60]!r} is neither an image nor points")
        numbers = tuple(float(word) for word in words[1:8])
        images.append(_Image(words[9].strip(), int(words[8]), numbers[:4], numbers[4:]))
    return images


def _lacks_name(words: list[str]) -> bool:
    """True if nine words are an image's without its name: three points hardly have a unit quaternion."""
    if len(words) != 9 or not (words[0].isdecimal() and words[8].isdecimal()):
        return False
    return abs(float(np.linalg.norm([float(word) for word in words[1:5]])) - 1) < 1e-3


def _are_points(words: list[str]) -> bool:
    """True if words are the points of an image: x, y and the point's number, an integer."""
    if len(words) % 3:
        return False
    try:
        for place, word in enumerate(words):
            int(word) if place % 3 == 2 else float(word)
    except ValueError:
        return False
    return True


def _cameras_binary(data: bytes) -> dict[int, _Camera]:
    (count,) = struct.unpack_from("<Q", data)
    position, cameras = 8, {}
    for _ in range(count):
        number, kind, width, height = struct.unpack_from("<iiQQ", data, position)
        if not 0 <= kind < len(_MODELS):
            raise ValueError(
                f"camera {number} has a lens of the model number {kind}, which is not known; export the "
                "model as text, or undistort the images"
            )
        name, parameters = _MODELS[kind]
        values = struct.unpack_from(f"<{parameters}d", data, position + 24)
        cameras[number] = _Camera(name, width, height, values)
        position += 24 + 8 * parameters
    return cameras


def _images_binary(data: bytes) -> list[_Image]:
    (count,) = struct.unpack_from("<Q", data)
    position, images = 8, []
    for _ in range(count):
        values = struct.unpack_from("<i7di", data, position)
        end = data.index(b"\0", position + 64)
        (points,) = struct.unpack_from("<Q", data, end + 1)
        images.append(_Image(data[position + 64 : end].decode(), values[8], values[1:5], values[5:8]))
        position = end + 9 + 24 * points
    return images
