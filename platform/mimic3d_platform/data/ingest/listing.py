"""What a source turns out to hold: images in an order, a camera for each, and what else is known of them."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mimic3d_platform.data.ingest.source_files import Source
from mimic3d_platform.errors import UserError


@dataclass
class Listing:
    """The images of a source that have cameras.

    Attributes:
        form: the source's form, a key of `sources.FORMS`.
        entries: names of files in the source, in the order of the rows.
        names: what the rows are called: the names that the source's own listing uses.
        labels: (n, 25) float64 camera labels, for the images as they are.
        sizes: (n, 2) width and height that the cameras are of, 0 where not told.
        identities: the name of the object that each image shows.
        weights: (n,) float32, or None.
        extras: other columns: the Arrow type's name, and n values that may be None.
        left_out: images without a camera and cameras without an image.
    """

    form: str
    entries: list[str]
    names: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    identities: list[str]
    weights: np.ndarray | None = None
    extras: dict[str, tuple[str, list[Any]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


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
    """(25,) float64 from a list.

    Raises:
        UserError: there are not 25 numbers; `what` says whose.
    """
    try:
        label = np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        label = np.zeros(0)
    if label.shape != (25,):
        raise UserError(
            f"{what} has a camera that is not 25 numbers: give a 4×4 camera-to-world matrix and a 3×3 "
            "intrinsic matrix, row by row"
        )
    return label


def find_pictures(
    source: Source, folder: str, names: list[str], listing: str, partial: bool
) -> tuple[list[int], list[str], list[str]]:
    """Matches the names of a listing with the source's files.

    Args:
        listing: what names them, for messages.
        partial: leave out names without a file instead of refusing them.
    Returns:
        the indices of names that are there, the entries of those, and the names left out.
    Raises:
        UserError: a name comes twice, leads out of the source, or has no file.
    """
    seen: set[str] = set()
    kept, entries, missing = [], [], []
    for index, name in enumerate(names):
        entry = source.within(folder, name)
        if entry is None:
            missing.append(name)
            continue
        if entry in seen:
            raise UserError(f"{listing} of {source.uri} lists {name} twice: take one out")
        seen.add(entry)
        kept.append(index)
        entries.append(entry)
    if missing and not partial:
        raise UserError(
            f"{listing} of {source.uri} has cameras for {_many(missing)} that are not there: "
            "add them, or leave such out with --partial"
        )
    if not kept:
        raise UserError(f"none of the {len(names)} images that {listing} of {source.uri} names is there")
    return kept, entries, missing


def refuse_unlabelled(source: Source, listing: str, names: list[str]) -> None:
    """Raises a UserError that names images without a camera."""
    if names:
        raise UserError(
            f"{listing} of {source.uri} has no camera for {_many(names)}: "
            "add them, or leave such out with --partial"
        )


def _many(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} images ({names[0]} is the first)"


def identity_of(name: str, by_folder: bool | None) -> str:
    """The object that an image shows, by its name: the folder's or the file's own.

    Args:
        by_folder: None decides by the folder: numbers such as `00012` only keep folders small, and then each
            image is an object of its own; a folder of another name holds the views of one object.
    """
    folder = posixpath.dirname(name)
    if by_folder is None:
        last = posixpath.basename(folder)
        by_folder = bool(last) and not (last.isdigit() and len(last) == 5)
    return folder if by_folder and folder else posixpath.splitext(name)[0].removesuffix("_mirror")
