"""The form of NeRF's `transforms.json`: frames with camera-to-world matrices in OpenGL axes.

OpenGL cameras have x right, y up and z backward. They are converted to OpenCV's axes (y down, z forward); the
world's axes stay. Synthetic scenes have `transforms_train.json`, `transforms_val.json` and
`transforms_test.json`, all of which are read, unless the user names one.
"""

from __future__ import annotations

import logging
import posixpath
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimic3d_platform.data.format.camera_labels import make_labels
from mimic3d_platform.data.format.image_files import image_size
from mimic3d_platform.data.ingest.listing import (
    Listing,
    identities_of,
    match_images,
    read_json,
    scene_name,
)
from mimic3d_platform.data.ingest.nerf_lens import Lens, ignored_keys, read_lens
from mimic3d_platform.data.ingest.source_files import IMAGE_SUFFIXES, Source
from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

LISTING = "transforms.json"
_SPLITS = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
LISTINGS = (LISTING, *_SPLITS)
_OPENGL = np.diag([1.0, -1, -1, 1])


@dataclass(frozen=True)
class _Frame:
    """A frame of the file `split`: camera-to-world in OpenCV axes; no lens where its image is broken."""

    name: str
    split: str
    pose: np.ndarray
    lens: Lens | None

    def same(self, other: _Frame) -> bool:
        """Whether another split repeats this frame."""
        lenses = self.lens == other.lens
        return self.split != other.split and lenses and np.allclose(self.pose, other.pose, atol=1e-6)


def read(source: Source, place: str, *, by_folder: bool | None, partial: bool, named: bool) -> Listing:
    """The listing of a source whose transforms are at `place`; of all splits if it is one of them.

    Args:
        named: the user named the file, which is read alone.
    Raises:
        UserError: a file is damaged, a lens is distorted or unknown, or an image is not there and `partial`
            is not set.
    """
    folder, file = posixpath.split(place)
    splits = [place]
    if file in _SPLITS and not named:
        beside = [posixpath.join(folder, name) for name in _SPLITS]
        splits = [split for split in beside if split in source.entries]
    elif file == LISTING and not named:
        others = [name for name in _SPLITS if posixpath.join(folder, name) in source.entries]
        if others:
            log.warning(
                "%s: %s is read, and not %s beside it; --cameras reads one of them",
                source.uri,
                place,
                ", ".join(others),
            )
    frames: dict[str, _Frame] = {}
    kept: list[_Frame] = []
    for split in splits:
        for frame in _read_frames(source, split, partial):
            entry = source.within(folder, frame.name) or frame.name
            if entry in frames and frames[entry].same(frame):
                continue
            frames[entry] = frame
            kept.append(frame)
    broken = [frame.name for frame in kept if frame.lens is None]
    usable = [frame for frame in kept if frame.lens is not None]
    if not usable:
        raise UserError(f"no image of {place} of {source.uri} can be used: the first is {broken[0]}")
    matched = match_images(
        source, folder, [frame.name for frame in usable], [frame.split for frame in usable], partial
    )
    chosen = [usable[index] for index in matched.kept]
    lenses = [frame.lens for frame in chosen if frame.lens is not None]
    scene = scene_name(source)
    return Listing(
        form="nerf",
        entries=matched.entries,
        names=matched.names,
        labels=make_labels(
            np.stack([frame.pose for frame in chosen]), np.array([lens.intrinsics for lens in lenses])
        ),
        sizes=np.array([lens.size for lens in lenses], dtype=np.int64),
        # By default, all frames show one object: the scene.
        identities=[scene] * len(chosen) if by_folder is None else identities_of(matched.names, by_folder),
        left_out=matched.missing + broken,
    )


def _read_frames(source: Source, split: str, partial: bool) -> list[_Frame]:
    content = read_json(source, split)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{split} of {source.uri} has no frames: correct it")
    folder = posixpath.dirname(split)
    found = []
    for number, frame in enumerate(frames):
        where = f"frame {number} of {split} of {source.uri}"
        path = frame.get("file_path") if isinstance(frame, dict) else None
        if not isinstance(path, str) or not path:
            raise UserError(f"{where} has no file_path: correct it")
        name = _with_suffix(source, folder, path)
        broken = False

        def size(name: str = name) -> tuple[int, int]:
            nonlocal broken
            entry = source.within(folder, name)
            if entry is None:
                return 16, 16  # A frame without an image is left out, or is an error.
            try:
                return image_size(source.read(entry), f"{name} of {source.uri}")
            except UserError:
                if not partial:
                    raise
                broken = True
                return 16, 16

        common = {key: value for key, value in content.items() if key != "frames"}
        lens = read_lens(common, frame, where, size)
        found.append(_Frame(name, split, _pose(frame, where) @ _OPENGL, None if broken else lens))
    if ignored := ignored_keys([content, *frames]):
        log.warning("%s of %s: the keys %s are not read", split, source.uri, ", ".join(ignored))
    return found


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
