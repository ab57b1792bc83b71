"""Reading PLY files: polygons and triangle strips; colours of vertices or faces in any type; textures.

Colours are sRGB: integers count from 0 to the largest of their type, floating-point numbers from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mimic3d_platform.data.render.mesh_parts import NEUTRAL, MeshPart, at_sample_points
from mimic3d_platform.data.render.polygons import triangulate
from mimic3d_platform.data.render.textures import Texture, decode_texture, find_file

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
_COLOURS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_PLACES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))


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
_Values = dict[str, "np.ndarray | list[np.ndarray]"]


def read_ply(path: Path) -> list[MeshPart]:
    """The one part of a PLY file.

    Raises:
        ValueError: it is not PLY, cut off, has no faces, or has what is not read.
    """
    data = path.read_bytes()
    elements, form, textures, position = _header(data)
    values = _read_elements(data, position, elements, form)
    vertex = values.get("vertex", {})
    if not all(axis in vertex for axis in "xyz"):
        raise ValueError("it has no vertices with x, y and z")
    points = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], axis=1)
    polygons, owners = _polygons(values)
    corner, owner = triangulate(points, polygons)
    if not len(corner):
        raise ValueError("it has no faces")
    flat = np.array([index for polygon in polygons for index in polygon], dtype=np.int64)
    starts = np.cumsum([0, *(len(polygon) for polygon in polygons)])[owner][:, None]
    faces = flat[starts + corner]
    element = values.get("face", {})
    colours = _colours(path, points, faces, corner, owners[owner], vertex, element, textures)
    return [MeshPart("", points, faces, colours, np.ones(len(faces)))]


def _header(data: bytes) -> tuple[list[_Element], str, list[str], int]:
    """The elements, the format, the textures that comments name, and where the values begin."""
    if data[:3] not in (b"ply", b"\xef\xbb\xbf"):
        raise ValueError("it is not PLY")
    elements: list[_Element] = []
    textures: list[str] = []
    form, position = "", 0
    try:
        while True:
            end = data.index(b"\n", position) + 1
            line = data[position:end].decode("latin-1").strip()
            position = end
            words = line.split()
            if not words or words[0] in ("obj_info", "ply"):
                continue
            if words[0] == "comment":
                if len(words) > 2 and words[1].lower() in ("texturefile", "texture"):
                    textures.append(" ".join(words[2:]))
            elif words[0] == "format":
                form = words[1]
            elif words[0] == "element":
                elements.append(_Element(words[1], int(words[2]), []))
            elif words[0] == "property":
                elements[-1].properties.append(_property(words[1:]))
            elif words[0] == "end_header":
                break
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"its PLY header is not read ({error})") from error
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise ValueError(f"its PLY format {form!r} is not read")
    return elements, form, textures, position


def _property(words: list[str]) -> _Property:
    if words[0] == "list":
        return _Property(words[3], np.dtype(_TYPES[words[2]]), np.dtype(_TYPES[words[1]]))
    return _Property(words[1], np.dtype(_TYPES[words[0]]), None)


def _read_elements(data: bytes, position: int, elements: list[_Element], form: str) -> dict[str, _Values]:
    values: dict[str, _Values] = {}
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
    return values


def _ascii(words: list[bytes], at: int, element: _Element) -> tuple[_Values, int]:
    columns: dict[str, list] = {each.name: [] for each in element.properties}
    single = [each.name for each in element.properties]
    if all(each.count is None for each in element.properties):
        width = len(single)
        if at + width * element.count > len(words):
            raise ValueError("cut off")
        table = np.array(words[at : at + width * element.count], dtype=np.float64).reshape(-1, max(width, 1))
        found: _Values = {
            each.name: table[:, column].astype(each.dtype) if each.dtype.kind != "f" else table[:, column]
            for column, each in enumerate(element.properties)
        }
        return found, at + width * element.count
    for _ in range(element.count):
        for each in element.properties:
            if each.count is None:
                columns[each.name].append(float(words[at]))
                at += 1
                continue
            length = int(words[at])
            if at + 1 + length > len(words):
                raise ValueError("cut off")
            columns[each.name].append(np.array(words[at + 1 : at + 1 + length], dtype=np.float64))
            at += 1 + length
    result: _Values = {}
    for each in element.properties:
        column = columns[each.name]
        if each.count is None:
            result[each.name] = np.array(column, np.float64).astype(each.dtype)
        else:
            result[each.name] = [item.astype(each.dtype) for item in column]
    return result, at


def _binary(data: bytes, position: int, element: _Element, order: _Order) -> tuple[_Values, int]:
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
            kind = each.dtype.newbyteorder(order)
            item = np.frombuffer(data, kind, length, position) if length else np.zeros(0, kind)
            position += kind.itemsize * length
            columns[each.name].append(item if each.count is not None else item[0])
    return {
        each.name: columns[each.name] if each.count is not None else np.array(columns[each.name], each.dtype)
        for each in element.properties
    }, position


def _uniform(data: bytes, position: int, element: _Element, order: _Order) -> tuple[_Values, int] | None:
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
    found: _Values = {
        each.name: table[each.name] if each.count is None else list(table[each.name])
        for each in element.properties
    }
    return found, position + record.itemsize * element.count


def _polygons(values: dict[str, _Values]) -> tuple[list[list[int]], np.ndarray]:
    """The polygons of faces and strips, and the face that each belongs to."""
    element = values.get("face", {})
    lists = element.get("vertex_indices", element.get("vertex_index", []))
    polygons = [[int(index) for index in item] for item in lists]
    owners = list(range(len(polygons)))
    for strip in values.get("tristrips", {}).get("vertex_indices", []):
        run: list[int] = []
        for index in [int(each) for each in strip] + [-1]:
            if index >= 0:
                run.append(index)
                continue
            triangles = [run[place : place + 3] for place in range(len(run) - 2)]
            polygons += [part[::-1] if place % 2 else part for place, part in enumerate(triangles)]
            run = []
    count = len(np.asarray(values["vertex"]["x"]))
    if any(not 0 <= index < count for polygon in polygons for index in polygon):
        raise ValueError("its faces refer to vertices that do not exist")
    owners += [-1] * (len(polygons) - len(owners))
    return polygons, np.array(owners, dtype=np.int64)


def _colours(
    path: Path,
    points: np.ndarray,
    faces: np.ndarray,
    corner: np.ndarray,
    owner: np.ndarray,
    vertex: _Values,
    element: _Values,
    textures: list[str],
) -> np.ndarray:
    """(F, 3) sRGB: of the texture, else of the faces, else of the vertices, else neutral."""
    if "material_index" in element or "material_indices" in element:
        raise ValueError("its faces have material indices, which are not read: give colours to its vertices")
    places = _texture_places(faces, corner, owner, vertex, element)
    if textures and places is not None:
        numbers = np.asarray(element.get("texnumber", np.zeros(1, np.int64))).astype(np.int64)
        number = numbers[owner] if len(numbers) > 1 else np.zeros(len(faces), np.int64)
        if number.min() < 0 or number.max() >= len(textures):
            raise ValueError(f"its faces have a texnumber that none of its {len(textures)} textures has")
        colours = np.zeros((len(faces), 3))
        for index in np.unique(number).tolist():
            read = _texture(path, textures[index]).read(at_sample_points(places[number == index]))
            colours[number == index] = read[..., :3].mean(axis=1)
        return colours
    if textures:
        raise ValueError(f"it names the texture {textures[0]} and has no texture coordinates")
    of_faces = _scaled(element)
    if of_faces is not None and (owner >= 0).all():
        return of_faces[owner]
    of_vertices = _scaled(vertex)
    if of_vertices is not None:
        return at_sample_points(of_vertices[faces]).mean(axis=1)
    return np.broadcast_to(NEUTRAL, (len(faces), 3))


def _texture_places(
    faces: np.ndarray, corner: np.ndarray, owner: np.ndarray, vertex: _Values, element: _Values
) -> np.ndarray | None:
    """(F, 3, 2), counted from the top left: of the faces' corners, else of the vertices; None if neither."""
    flat = element.get("texcoord")
    if flat is not None and (owner >= 0).all():
        pairs = [np.asarray(item, np.float64).reshape(-1, 2) for item in flat]
        if any(len(pairs[face]) <= places.max() for face, places in zip(owner, corner, strict=True)):
            raise ValueError("a face has fewer texture coordinates than corners")
        found = np.stack([pairs[face][places] for face, places in zip(owner, corner, strict=True)])
    else:
        names = next((pair for pair in _PLACES if all(name in vertex for name in pair)), None)
        if names is None:
            return None
        found = np.stack([np.asarray(vertex[name], np.float64) for name in names], axis=1)[faces]
    return np.stack([found[..., 0], 1 - found[..., 1]], axis=-1)


def _texture(path: Path, name: str) -> Texture:
    place = find_file(path.parent, name)
    if place is None:
        raise ValueError(f"its texture {name} is missing: put it beside the mesh")
    return Texture(decode_texture(place.read_bytes(), name))


def _scaled(element: _Values) -> np.ndarray | None:
    """(n, 3) sRGB in [0, 1] of an element's colour properties; None if it has none."""
    names = next((three for three in _COLOURS if all(name in element for name in three)), None)
    if names is None:
        return None
    columns = []
    for name in names:
        column = np.asarray(element[name])
        most = 1.0 if column.dtype.kind == "f" else float(np.iinfo(column.dtype).max)
        columns.append(column.astype(np.float64) / most)
    colours = np.stack(columns, axis=1)
    if not np.isfinite(colours).all() or colours.max(initial=0) > 1.001:
        raise ValueError("its colours are floating-point numbers that are not between 0 and 1")
    return colours.clip(0, 1)
