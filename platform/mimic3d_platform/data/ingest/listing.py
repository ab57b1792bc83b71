"""The listing of a source: its images in order, each with a camera, and what else the source says of them."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mimic3d_platform.data.format.manifest import CAMERA_SIZE
from mimic3d_platform.data.ingest.source_files import Source, normal_name
from mimic3d_platform.errors import UserError


@dataclass(frozen=True)
class ExtraColumn:
    """A column of the user's own.

    Attributes:
        kind: the Arrow type's name.
        values: one for each row; None where the source has none.
    """

    kind: str
    values: list[Any]


@dataclass(frozen=True)
class Listing:
    """The images of a source that have cameras.

    Attributes:
        form: the source's form, a key of `read_listing.FORMS`.
        entries: names of the image files in the source, in the order of the rows.
        names: the rows' names: as the source's own listing names the images, normalised.
        labels: (n, 25) float64, camera labels of the images as they are in the source.
        sizes: (n, 2) int64, width and height of the images that the cameras describe; 0 where unknown.
        identities: the name of the object that each image shows.
        weights: (n,) float32, or None.
        extras: the user's own columns.
        left_out: images without a camera, and cameras without an image.
    """

    form: str
    entries: list[str]
    names: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    identities: list[str]
    weights: np.ndarray | None = None
    extras: dict[str, ExtraColumn] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MatchedImages:
    """The names of a listing, matched with the files of the source.

    Attributes:
        kept: indices of the names that have a file.
        entries: those files.
        names: those names, normalised.
        missing: the names that have none.
    """

    kept: list[int]
    entries: list[str]
    names: list[str]
    missing: list[str]


def match_images(
    source: Source,
    folder: str,
    names: Sequence[str],
    listing: str | Sequence[str],
    partial: bool,
) -> MatchedImages:
    """Matches the names of a listing with the files of the source.

    Args:
        folder: the folder that the names are relative to.
        listing: the name of the listing, for error messages; or that of each name.
        partial: accept names without a file.
    Raises:
        UserError: a name is repeated, leads out of the source, or has no file; or no name has one.
    """
    seen: dict[str, str] = {}
    kept, entries, missing, lacking = [], [], [], []
    for index, name in enumerate(names):
        origin = listing if isinstance(listing, str) else listing[index]
        entry = source.within(folder, name)
        if entry is None:
            missing.append(name)
            lacking.append(origin)
            continue
        if entry in seen and seen[entry] != origin:
            raise UserError(
                f"{seen[entry]} and {origin} of {source.uri} both list {name}, with different cameras: "
                "remove one, or name one file with --cameras"
            )
        if entry in seen:
            raise UserError(f"{origin} of {source.uri} lists {name} twice: remove one")
        seen[entry] = origin
        kept.append(index)
        entries.append(entry)
    if missing and not partial:
        of_first = [name for name, origin in zip(missing, lacking, strict=True) if origin == lacking[0]]
        raise UserError(
            f"{lacking[0]} of {source.uri} has cameras for {_first_of(of_first)}, which the source lacks: "
            "add the images, or leave such cameras out with --partial"
        )
    if not kept:
        origin = listing if isinstance(listing, str) else listing[0]
        raise UserError(f"the source lacks all {len(names)} images that {origin} of {source.uri} lists")
    return MatchedImages(
        kept,
        entries,
        [_row_name(names[index], entry) for index, entry in zip(kept, entries, strict=True)],
        missing,
    )


def _row_name(name: str, entry: str) -> str:
    """The listing's name for an image, normalised so that a zip may hold it."""
    normal = normal_name(name)
    return entry if normal.startswith("../") else normal


def refuse_unlabelled(source: Source, listing: str, names: list[str]) -> None:
    """Raises a UserError if there are `names`: images without a camera."""
    if names:
        raise UserError(
            f"{listing} of {source.uri} has no camera for {_first_of(names)}: "
            "add the cameras, or leave such images out with --partial"
        )


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} images ({names[0]} is the first)"


def read_json(source: Source, name: str) -> Any:
    """A JSON file of a source.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(source.read(name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} of {source.uri} is not JSON ({error}): correct it") from error


def to_label(numbers: Any, what: str) -> np.ndarray:
    """(25,) float64, the label that a source's listing gives.

    Args:
        what: what the label belongs to, for error messages.
    Raises:
        UserError: it is not a list of 25 numbers.
    """
    try:
        label = np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        label = np.zeros(0)
    if label.shape != (CAMERA_SIZE,):
        raise UserError(
            f"{what} has a camera that is not 25 numbers: give a 4×4 camera-to-world matrix and a 3×3 "
            "intrinsic matrix, row by row"
        )
    return label


def identities_of(names: Sequence[str], by_folder: bool | None) -> list[str]:
    """The objects that images show, by their normalised names: their folders or their own names.

    Images whose names differ in the suffix alone show different objects.

    Args:
        by_folder: True for the folder, False for the image's own name. None decides by the folder's name:
            five digits such as `00012` only split a large set, and each image is an object of its own; a
            folder of any other name holds the views of one object.
    """
    stems, whole_names = Counter(posixpath.splitext(name)[0] for name in names), set(names)
    identities = []
    for name in names:
        folder, stem = posixpath.dirname(name), posixpath.splitext(name)[0]
        last = posixpath.basename(folder)
        whole = bool(last) and not (last.isdigit() and len(last) == 5) if by_folder is None else by_folder
        if whole and folder:
            identities.append(folder)
        else:
            identities.append(
                name if stems[stem] > 1 or stem in whole_names else stem.removesuffix("_mirror")
            )
    return identities


def scene_name(source: Source) -> str:
    """The name of the one object that a NeRF or COLMAP source shows: the source's own."""
    return posixpath.splitext(posixpath.basename(source.uri.rstrip("/")))[0]
