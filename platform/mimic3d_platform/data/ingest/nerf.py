"""The form of NeRF's `transforms.json`: frames with camera-to-world matrices in OpenGL axes.

OpenGL cameras have x right, y up and z backward. They are converted to OpenCV's axes (y down, z forward); the
world's axes stay. Synthetic scenes have `transforms_train.json`, `transforms_val.json` and
`transforms_test.json`, all of which are read.
"""

from __future__ import annotations

import io
import math
import posixpath
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mimic3d_platform.data.format.camera_labels import make_labels
from mimic3d_platform.data.ingest.listing import Listing, identity_of, match_images, read_json, scene_name
from mimic3d_platform.data.ingest.source_files import IMAGE_SUFFIXES, Source
from mimic3d_platform.errors import UserError

LISTING = "transforms.json"
_SPLITS = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_OPENGL = np.diag([1.0, -1, -1, 1])


@dataclass(frozen=True)
class _Lens:
    """Focal lengths and principal point in image sizes, and the image's size in pixels."""

    intrinsics: tuple[float, float, float, float]
    size: tuple[int, int]


def find(source: Source) -> str | None:
    """The listing's name at the top of the source: `transforms.json`, or the first of a scene's splits."""
    return next((name for name in (LISTING, *_SPLITS) if name in source.entries), None)


def read(source: Source, place: str, *, by_folder: bool | None, partial: bool) -> Listing:
    """The listing of a source whose transforms are at `place`; of all splits if it is one of them.

    Raises:
        UserError: a file is damaged, a lens is distorted or unknown, or an image is not there and `partial`
            is not set.
    """
    folder, file = posixpath.split(place)
    splits = [posixpath.join(folder, name) for name in _SPLITS] if file in _SPLITS else [place]
    names, poses, lenses = [], [], []
    for split in splits:
        if split not in source.entries:
            continue
        content = read_json(source, split)
        frames = content.get("frames") if isinstance(content, dict) else None
        if not isinstance(frames, list) or not frames:
            raise UserError(f"{split} of {source.uri} has no frames: correct it")
        for number, frame in enumerate(frames):
            where = f"frame {number} of {split} of {source.uri}"
            if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
                raise UserError(f"{where} has no file_path: correct it")
            names.append(_with_suffix(source, posixpath.dirname(split), frame["file_path"]))
            poses.append(_pose(frame, where) @ _OPENGL)
            lenses.append(_lens(content | frame, where, source, posixpath.dirname(split), names[-1]))
    matched = match_images(source, folder, names, place, partial)
    labels = make_labels(np.stack(poses), np.array([lens.intrinsics for lens in lenses]))
    sizes = np.array([lens.size for lens in lenses], dtype=np.int64)
    kept_names = [posixpath.normpath(names[index]) for index in matched.kept]
    return Listing(
        form="nerf",
        entries=matched.entries,
        names=kept_names,
        labels=labels[matched.kept],
        sizes=sizes[matched.kept],
        identities=[_identity(source, name, by_folder) for name in kept_names],
        left_out=matched.missing,
    )


def _identity(source: Source, name: str, by_folder: bool | None) -> str:
    """By default, all frames show one object: the scene."""
    return scene_name(source) if by_folder is None else identity_of(name, by_folder)


def _with_suffix(source: Source, folder: str, name: str) -> str:
    """The image's file name; synthetic scenes name their images without the suffix."""
    if source.within(folder, name) is None:
        for suffix in IMAGE_SUFFIXES:
            if source.within(folder, name + suffix) is not None:
                return name + suffix
    return name


def _pose(frame: dict[str, Any], where: str) -> np.ndarray:
    try:
        pose = np.array(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError):
        pose = np.zeros(0)
    if pose.shape == (3, 4):
        pose = np.concatenate([pose, [[0, 0, 0, 1]]])
    if pose.shape != (4, 4):
        raise UserError(f"{where} has a transform_matrix that is not 4×4 numbers: correct it")
    return pose


def _lens(values: dict[str, Any], where: str, source: Source, folder: str, name: str) -> _Lens:
    """The lens that a frame, or the file's common part, describes."""
    for key in ("camera_angle_x", "camera_angle_y", "fl_x", "fl_y", "cx", "cy", "w", "h", *_DISTORTION):
        value = values.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise UserError(f"{where} has a {key} that is not a number: correct it")
    if distorted := [key for key in _DISTORTION if abs(values.get(key) or 0) > 1e-9]:
        raise UserError(
            f"{where} has a distorted lens ({', '.join(distorted)}): undistort the images first, with "
            "`colmap image_undistorter` for example"
        )
    width, height = values.get("w"), values.get("h")
    if not width or not height:
        width, height = _image_size(source, folder, name)
    if values.get("fl_x"):
        fx = values["fl_x"] / width
    elif values.get("camera_angle_x"):
        fx = 0.5 / math.tan(values["camera_angle_x"] / 2)
    else:
        raise UserError(f"{where} has neither fl_x nor camera_angle_x: add one, for its focal length")
    if values.get("fl_y"):
        fy = values["fl_y"] / height
    elif values.get("camera_angle_y"):
        fy = 0.5 / math.tan(values["camera_angle_y"] / 2)
    else:
        fy = fx * width / height  # square pixels
    cx = values["cx"] / width if values.get("cx") is not None else 0.5
    cy = values["cy"] / height if values.get("cy") is not None else 0.5
    return _Lens((fx, fy, cx, cy), (int(width), int(height)))


def _image_size(source: Source, folder: str, name: str) -> tuple[int, int]:
    """The size of an image whose frame does not give it."""
    entry = source.within(folder, name)
    if entry is None:
        return 1, 1  # A frame without an image is left out, or is an error.
    try:
        with Image.open(io.BytesIO(source.read(entry))) as image:
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} of {source.uri} is not a readable image: replace it") from error
