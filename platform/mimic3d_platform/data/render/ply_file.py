"""The container of PLY: its header, and the values of its elements, ASCII or binary."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}

_Order = Literal["<", ">"]


@dataclass(frozen=True)
class _Property:
    name: str
    dtype: np.dtype
    count: np.dtype | None  # the type of a list's length; None for a single value


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: list[_Property]


# The values of an element by property: an array, or for a list property a list of arrays.
PlyValues = dict[str, "np.ndarray | list[np.ndarray]"]


def parse_ply(data: bytes) -> tuple[dict[str, PlyValues], list[str]]:
    """The values of a file's elements, and the textures that its comments name.

    Raises:
        ValueError: it is not PLY, cut off or damaged, or a number does not fit its property's type.
    """
    elements, form, textures, position = _header(data)
    return _read_elements(data, position, elements, form), textures


def single(element: PlyValues, name: str) -> np.ndarray:
    """The values of a property of an element that is no list."""
    column = element[name]
    if not isinstance(column, np.ndarray):
        raise ValueError(f"its property {name} is a list: it should be one value")
    return column


def lists(element: PlyValues, name: str, integers: bool = False) -> list[np.ndarray]:
    """The values of a list property of an element; none if there is no such property."""
    column = element.get(name, [])
    if isinstance(column, np.ndarray):
        raise ValueError(f"its property {name} is one value: it should be a list")
    if integers and any(item.dtype.kind == "f" and (item != np.trunc(item)).any() for item in column):
        raise ValueError(f"its property {name} has values that are no integers")
    if integers and any(item.dtype.kind == "f" and not np.isfinite(item).all() for item in column):
        raise ValueError(f"its property {name} has values that are not finite")
    return column


def _header(data: bytes) -> tuple[list[_Element], str, list[str], int]:
    """The elements, the format, the textures that comments name, and where the values begin."""
    if data[:3] not in (b"ply", b"\xef\xbb\xbf"):
        raise ValueError("it is not PLY")
    # Only a file whose lines end in CR alone has one after the first word without LF.
    ending = b"\r" if re.match(rb"(\xef\xbb\xbf)?ply\s*?\r(?!\n)", data) else b"\n"
    elements: list[_Element] = []
    textures: list[str] = []
    form, position = "", 0
    while (end := data.find(ending, position) + 1) > 0:
        line = data[position:end].decode("latin-1").strip()
        position = end
        words = line.split()
        if not words or words[0] in ("obj_info", "ply"):
            continue
        try:
            if words[0] == "comment":
                textures += _named_texture(line)
            elif words[0] == "format":
                form = words[1]
            elif words[0] == "element":
                elements.append(_Element(words[1].lower(), int(words[2]), []))
                if elements[-1].count < 0:
                    raise ValueError("a negative number")
            elif words[0] == "property":
                elements[-1].properties.append(_property(words[1:], elements[-1]))
            elif words[0] == "end_header":
                break
        except (ValueError, IndexError) as error:
            cause = error if isinstance(error, ValueError) else "it is incomplete or out of place"
            raise ValueError(f"its PLY header has the line {line[:60]!r}, not read ({cause})") from error
    else:
        raise ValueError("its PLY header has no end_header: copy the file again")
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise ValueError(f"its PLY format {form!r} is not read")
    return elements, form, textures, position


def _named_texture(line: str) -> list[str]:
    """The name in `comment TextureFile NAME`, empty if it is left out; nothing for other comments."""
    words = line.split(maxsplit=2)
    kind = words[1].lower() if len(words) > 1 else ""
    if kind == "texturefile" or (kind == "texture" and len(words) > 2):
        return [_utf8(words[2]).strip('"') if len(words) > 2 else ""]
    return []


def _utf8(text: str) -> str:
    """A header's text, which is read as Latin-1, in UTF-8 if it is that."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError:
        return text


def _property(words: list[str], element: _Element) -> _Property:
    """A property, in lower case: writers differ in it."""
    is_list = words[0] == "list"
    types = words[1:3] if is_list else words[:1]
    name = words[3 if is_list else 1]
    if unknown := [kind for kind in types if kind not in _TYPES]:
        raise ValueError(f"the type {unknown[0]} is not known")
    taken = {each.name for each in element.properties}
    name = name if name.lower() in taken else name.lower()
    if name in taken:
        raise ValueError("it is there twice")
    dtypes = [np.dtype(_TYPES[kind]) for kind in types]
    if is_list and dtypes[0].kind == "f":
        raise ValueError("a list's length is an integer")
    return _Property(name, dtypes[-1], dtypes[0] if is_list else None)


def _read_elements(data: bytes, position: int, elements: list[_Element], form: str) -> dict[str, PlyValues]:
    values: dict[str, PlyValues] = {}
    words = data[position:].split() if form == "ascii" else []
    at = 0
    for element in elements:
        try:
            if form == "ascii":
                values[element.name], at = _ascii(words, at, element)
            else:
                order: _Order = "<" if form == "binary_little_endian" else ">"
                values[element.name], position = _binary(data, position, element, order)
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"its element {element.name} is cut off or damaged: copy the file again"
            ) from error
        if form == "ascii":
            for each in element.properties:
                values[element.name][each.name] = _typed(values[element.name][each.name], each)
    return values


def _typed(column: np.ndarray | list[np.ndarray], given: _Property) -> np.ndarray | list[np.ndarray]:
    """Numbers of an ASCII file in the type of their property, which must hold them."""
    if given.dtype.kind == "f":
        return column
    flat = column if isinstance(column, np.ndarray) else np.concatenate([np.zeros(0), *column])
    limits = np.iinfo(given.dtype)
    with np.errstate(invalid="ignore"):
        unfit = (flat != np.round(flat)) | (flat < limits.min) | (flat > limits.max)
    if unfit.any():
        raise ValueError(
            f"its property {given.name} has the value {flat[unfit][0]:g}:"
            f" its type holds integers from {limits.min} to {limits.max}"
        )
    if isinstance(column, np.ndarray):
        return column.astype(given.dtype)
    return [item.astype(given.dtype) for item in column]


def _ascii(words: list[bytes], at: int, element: _Element) -> tuple[PlyValues, int]:
    columns: dict[str, list] = {each.name: [] for each in element.properties}
    if all(each.count is None for each in element.properties):
        width = len(element.properties)
        if at + width * element.count > len(words):
            raise ValueError("cut off")
        table = np.array(words[at : at + width * element.count], dtype=np.float64).reshape(-1, max(width, 1))
        found: PlyValues = {each.name: table[:, column] for column, each in enumerate(element.properties)}
        return found, at + width * element.count
    for _ in range(element.count):
        for each in element.properties:
            if each.count is None:
                columns[each.name].append(float(words[at]))
                at += 1
                continue
            length = int(words[at])
            if length < 0 or at + 1 + length > len(words):
                raise ValueError("cut off")
            columns[each.name].append(np.array(words[at + 1 : at + 1 + length], dtype=np.float64))
            at += 1 + length
    return {
        each.name: columns[each.name] if each.count is not None else np.array(columns[each.name], np.float64)
        for each in element.properties
    }, at


def _binary(data: bytes, position: int, element: _Element, order: _Order) -> tuple[PlyValues, int]:
    if uniform := _uniform(data, position, element, order):
        return uniform
    columns: dict[str, list] = {each.name: [] for each in element.properties}
    for _ in range(element.count):
        for each in element.properties:
            length = 1
            if each.count is not None:
                kind = each.count.newbyteorder(order)
                length = int(np.frombuffer(data, kind, 1, position)[0])
                position += kind.itemsize
                if length < 0:
                    raise ValueError("a negative length")
            kind = each.dtype.newbyteorder(order)
            item = np.frombuffer(data, kind, length, position) if length else np.zeros(0, kind)
            position += kind.itemsize * length
            columns[each.name].append(item if each.count is not None else item[0])
    return {
        each.name: columns[each.name] if each.count is not None else np.array(columns[each.name], each.dtype)
        for each in element.properties
    }, position


def _uniform(data: bytes, position: int, element: _Element, order: _Order) -> tuple[PlyValues, int] | None:
    """The values of an element in one read, where all of its lists are as long as the first ones."""
    fields: list[tuple] = []
    lengths: dict[str, int] = {}
    offset = position
    for each in element.properties:
        kind = each.dtype.newbyteorder(order)
        if each.count is None:
            fields.append((each.name, kind))
            offset += kind.itemsize
            continue
        count = each.count.newbyteorder(order)
        if not element.count:
            return None
        lengths[each.name] = int(np.frombuffer(data, count, 1, offset)[0])
        fields += [(f"{each.name} length", count), (each.name, kind, (lengths[each.name],))]
        offset += count.itemsize + kind.itemsize * lengths[each.name]
    record = np.dtype(fields)
    if len(data) - position < record.itemsize * element.count:
        if lengths:
            return None
        raise ValueError("cut off")
    table = np.frombuffer(data, record, element.count, position)
    if any((table[f"{name} length"] != length).any() for name, length in lengths.items()):
        return None
    found: PlyValues = {
        each.name: table[each.name] if each.count is None else list(table[each.name])
        for each in element.properties
    }
    return found, position + record.itemsize * element.count
