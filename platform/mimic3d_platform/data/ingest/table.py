"""The form of a folder of images with a table of their cameras, CSV or JSON.

CSV: a header; the column `image` (or `file`, `file_name`, `name`) names the file; the camera is one column
`camera` of 25 numbers separated by blanks, commas or semicolons, or the columns `camera_0` … `camera_24`.
JSON: a list of objects with the same keys, `camera` a list. `identity` and `weight` are optional; every other
column becomes a column of the data set.
"""

from __future__ import annotations

import csv
import io
import posixpath
from typing import Any

import numpy as np

from mimic3d_platform.data.ingest.listing import (
    ExtraColumn,
    Listing,
    identities_of,
    match_images,
    read_json,
    to_label,
)
from mimic3d_platform.data.ingest.source_files import Source, is_image
from mimic3d_platform.errors import UserError

LISTINGS = ("cameras.csv", "cameras.json")

_IMAGE = ("image", "file", "file_name", "name")
_NUMBERED = [f"camera_{number}" for number in range(25)]
# Columns of the format that a table cannot give.
_RESERVED = {"depth", "mask", "label", "name", "image"}


def read(source: Source, place: str, *, by_folder: bool | None, partial: bool, named: bool) -> Listing:
    """The listing of a source whose table is at `place`.

    Raises:
        UserError: the table is damaged or lacks a required column, or names an image that is missing and
            `partial` is not set.
    """
    where = f"{place} of {source.uri}"
    rows = (
        _read_csv(source, place, where)
        if place.lower().endswith(".csv")
        else _read_rows(source, place, where)
    )
    if not rows:
        raise UserError(f"{where} has no rows: give one for each image")
    key = next((name for name in _IMAGE if name in rows[0]), None)
    if key is None:
        raise UserError(f"{where} has no column {_IMAGE[0]!r}: name each row's image file there")
    names, labels = [], []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(key), str) or not row[key]:
            raise UserError(f"row {number} of {where} names no image: correct it")
        names.append(row[key])
        labels.append(_camera(row, f"row {number} of {where}"))
    matched = match_images(source, posixpath.dirname(place), names, place, partial)
    rows = [rows[index] for index in matched.kept]
    identities = [
        str(row["identity"]) if row.get("identity") not in (None, "") else identity
        for row, identity in zip(rows, identities_of(matched.names, by_folder), strict=True)
    ]
    for identity in identities:
        _check_text(identity, "identity", where)
    listed = set(matched.entries)
    return Listing(
        form="table",
        entries=matched.entries,
        names=matched.names,
        labels=np.stack([labels[index] for index in matched.kept]),
        sizes=np.zeros((len(matched.names), 2), dtype=np.int64),
        identities=identities,
        weights=_weights(rows, matched.kept, where) if any("weight" in row for row in rows) else None,
        extras=_extras(rows, {key, "camera", "identity", "weight", *_NUMBERED}, where),
        left_out=matched.missing + [name for name in source.entries if is_image(name) and name not in listed],
    )


def _read_csv(source: Source, place: str, where: str) -> list[dict[str, Any]]:
    try:
        text = source.read(place).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        heads = reader.fieldnames or []
        if repeated := [name for name in heads if heads.count(name) > 1]:
            raise UserError(f"{where} has two columns {repeated[0]!r}: rename or remove one")
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} is not CSV in UTF-8 ({error}): correct it") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UserError(f"row {number} of {where} has more or fewer fields than its header: correct it")
    return rows


def _read_rows(source: Source, place: str, where: str) -> list[dict[str, Any]]:
    rows = read_json(source, place)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f'{where} is not a list of objects such as {{"image": "a.png", "camera": […]}}: correct it'
        )
    return rows


def _camera(row: dict[str, Any], where: str) -> np.ndarray:
    numbers: Any = row.get("camera")
    if numbers is None:
        numbers = [row.get(name) for name in _NUMBERED]
    elif isinstance(numbers, str):
        numbers = numbers.strip("[]() ").replace(",", " ").replace(";", " ").split()
    return to_label(numbers, where)


def _weights(rows: list[dict[str, Any]], indices: list[int], where: str) -> np.ndarray:
    """(n,) float32; `indices` are the rows' places in the table, for error messages."""
    weights = np.zeros(len(rows), dtype=np.float32)
    for place, (row, index) in enumerate(zip(rows, indices, strict=True)):
        try:
            weights[place] = row["weight"]
        except (KeyError, TypeError, ValueError):
            weights[place] = np.nan
        if not (np.isfinite(weights[place]) and weights[place] >= 0):
            raise UserError(
                f"row {index + 1} of {where} has the weight {row.get('weight')!r}: give a number of 0 or more"
            )
    if not weights.any():
        raise UserError(f"{where} has no weight above 0: correct it")
    return weights


def _check_text(text: str, column: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where} has text in its column {column!r} that is not Unicode: correct it"
        ) from None


def _extras(rows: list[dict[str, Any]], known: set[str], where: str) -> dict[str, ExtraColumn]:
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in known]
    extras = {}
    for name in names:
        if name in _RESERVED or not name.isidentifier():
            raise UserError(f"{where} has a column {name!r}, a name that cannot be used: give it another")
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        # Arrow's integers have 64 bits, and those beside fractions have to be exact as doubles.
        most = 2**63 if kinds <= {int} else 2**53
        if any(abs(value) >= most for value in values if type(value) is int):
            raise UserError(f"{where} has a column {name!r} of numbers that are too large: give them as text")
        for value in values:
            if type(value) is str:
                _check_text(value, name, where)
        if kinds <= {str}:
            extras[name] = ExtraColumn("string", values)
        elif kinds == {bool}:
            extras[name] = ExtraColumn("bool", values)
        elif kinds == {int}:
            extras[name] = ExtraColumn("int64", values)
        elif kinds <= {int, float}:
            extras[name] = ExtraColumn("double", values)
        else:
            raise UserError(
                f"{where} has a column {name!r} of mixed or nested values: give all the same type"
            )
    return extras
