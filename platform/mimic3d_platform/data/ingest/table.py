"""A folder of images with a table of their cameras, CSV or JSON.

CSV: a header; `image` (or `file`, `file_name`, `name`) is the file; the camera is one column `camera` of 25
numbers separated by blanks, commas or semicolons, or the columns `camera_0` … `camera_24`. JSON: a list of
objects with the same keys, `camera` a list. `identity` and `weight` are taken if there; every other column
passes through.
"""

from __future__ import annotations

import csv
import io
import posixpath
from typing import Any

import numpy as np

from mimic3d_platform.data.ingest.listing import Listing, find_pictures, identity_of, read_json, to_label
from mimic3d_platform.data.ingest.source_files import Source, is_picture
from mimic3d_platform.errors import UserError

LISTINGS = ("cameras.csv", "cameras.json")

_IMAGE = ("image", "file", "file_name", "name")
_NUMBERED = [f"camera_{number}" for number in range(25)]
# Columns of the format that a table cannot fill.
_TAKEN = {"depth", "mask", "label", "name", "image"}


def find(source: Source) -> str | None:
    """The listing's name, at the top of the source."""
    return next((name for name in LISTINGS if name in source.entries), None)


def read(source: Source, place: str, *, by_folder: bool | None, partial: bool) -> Listing:
    """The listing of a source whose table is at `place`.

    Raises:
        UserError: the table is damaged or lacks what is needed, or names an image that is not there and
            `partial` is not set.
    """
    where = f"{place} of {source.uri}"
    rows = (
        _read_csv(source, place, where)
        if place.lower().endswith(".csv")
        else _read_rows(source, place, where)
    )
    if not rows:
        raise UserError(f"{where} has no row: give one for each image")
    key = next((name for name in _IMAGE if name in rows[0]), None)
    if key is None:
        raise UserError(f"{where} has no column {_IMAGE[0]!r}: name each row's image file there")
    names, labels = [], []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(key), str) or not row[key]:
            raise UserError(f"row {number} of {where} names no image: correct it")
        names.append(row[key])
        labels.append(_camera(row, f"row {number} of {where}"))
    kept, entries, missing = find_pictures(source, posixpath.dirname(place), names, place, partial)
    rows, shown = [rows[index] for index in kept], [names[index] for index in kept]
    identities = [
        str(row["identity"]) if row.get("identity") not in (None, "") else identity_of(name, by_folder)
        for row, name in zip(rows, shown, strict=True)
    ]
    known = set(entries)
    return Listing(
        form="table",
        entries=entries,
        names=shown,
        labels=np.stack([labels[index] for index in kept]),
        sizes=np.zeros((len(kept), 2), dtype=np.int64),
        identities=identities,
        weights=_weights(rows, where) if "weight" in rows[0] else None,
        extras=_extras(rows, {key, "camera", "identity", "weight", *_NUMBERED}, where),
        left_out=missing + [name for name in source.entries if is_picture(name) and name not in known],
    )


def _read_csv(source: Source, place: str, where: str) -> list[dict[str, Any]]:
    try:
        text = source.read(place).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} is no CSV in UTF-8 ({error}): correct it") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UserError(f"row {number} of {where} has more or fewer fields than its header: correct it")
    return rows


def _read_rows(source: Source, place: str, where: str) -> list[dict[str, Any]]:
    rows = read_json(source, place)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f'{where} is no list of objects such as {{"image": "a.png", "camera": […]}}: correct it'
        )
    return rows


def _camera(row: dict[str, Any], where: str) -> np.ndarray:
    numbers: Any = row.get("camera")
    if numbers is None:
        numbers = [row.get(name) for name in _NUMBERED]
    elif isinstance(numbers, str):
        numbers = numbers.strip("[]() ").replace(",", " ").replace(";", " ").split()
    return to_label(numbers, where)


def _weights(rows: list[dict[str, Any]], where: str) -> np.ndarray:
    try:
        weights = np.array([row.get("weight") for row in rows], dtype=np.float32)
    except (TypeError, ValueError):
        weights = np.full(1, np.nan, dtype=np.float32)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise UserError(f"{where} has a weight that is no number of 0 or more: correct it")
    return weights


def _extras(rows: list[dict[str, Any]], known: set[str], where: str) -> dict[str, tuple[str, list[Any]]]:
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in known]
    extras = {}
    for name in names:
        if name in _TAKEN or not name.isidentifier():
            raise UserError(f"{where} has a column {name!r}, a name that cannot be used: give it another")
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {str}:
            extras[name] = ("string", values)
        elif kinds == {bool}:
            extras[name] = ("bool", values)
        elif kinds == {int}:
            extras[name] = ("int64", values)
        elif kinds <= {int, float}:
            extras[name] = ("double", values)
        else:
            raise UserError(f"{where} has a column {name!r} of mixed or nested values: make them one kind")
    return extras
