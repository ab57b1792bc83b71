"""Reading PLY files: polygons and triangle strips; colours of vertices or faces in any type; textures.

Colours are sRGB: integers count from 0 to the largest of their type, floating-point numbers from 0 to 1.
Integers of 16 and 32 bits that are nowhere above 255 count to 255.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from mimic3d_platform.data.render.mesh_parts import NEUTRAL, MeshPart, at_sample_points
from mimic3d_platform.data.render.ply_file import PlyValues, lists, parse_ply, single
from mimic3d_platform.data.render.polygons import triangulate
from mimic3d_platform.data.render.textures import Texture, decode_texture, find_file

log = logging.getLogger(__name__)

_COLOURS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_PLACES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))


def read_ply(path: Path) -> list[MeshPart]:
    """The one part of a PLY file.

    Raises:
        ValueError: it is not PLY, cut off, has no faces, or has what is not read.
    """
    values, textures = parse_ply(path.read_bytes())
    vertex = values.get("vertex", {})
    if not all(axis in vertex for axis in "xyz"):
        raise ValueError("it has no vertices with x, y and z")
    points = np.stack([single(vertex, axis).astype(np.float64) for axis in "xyz"], axis=1)
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


def _polygons(values: dict[str, PlyValues]) -> tuple[list[list[int]], np.ndarray]:
    """The polygons of faces and strips, and the face that each belongs to."""
    element = values.get("face", {})
    name = "vertex_indices" if "vertex_indices" in element else "vertex_index"
    polygons = [[int(index) for index in item] for item in lists(element, name, integers=True)]
    owners = list(range(len(polygons)))
    for strip in lists(values.get("tristrips", {}), "vertex_indices", integers=True):
        run: list[int] = []
        for index in [int(each) for each in strip] + [-1]:
            if index >= 0:
                run.append(index)
                continue
            triangles = [run[place : place + 3] for place in range(len(run) - 2)]
            polygons += [part[::-1] if place % 2 else part for place, part in enumerate(triangles)]
            run = []
    count = len(values["vertex"]["x"])
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
    vertex: PlyValues,
    element: PlyValues,
    textures: list[str],
) -> np.ndarray:
    """(F, 3) sRGB: of the texture, else of the faces, else of the vertices, else neutral."""
    if "material_index" in element or "material_indices" in element:
        raise ValueError("its faces have material indices, which are not read: give colours to its vertices")
    places = _texture_places(faces, corner, owner, vertex, element)
    if textures and places is not None:
        numbers = single({"texnumber": np.zeros(1, np.int64), **element}, "texnumber").astype(np.int64)
        number = numbers[owner] if len(numbers) > 1 else np.zeros(len(faces), np.int64)
        if number.min() < 0 or number.max() >= len(textures):
            raise ValueError(f"its faces have a texnumber that none of its {len(textures)} textures has")
        colours = np.zeros((len(faces), 3))
        for index in np.unique(number).tolist():
            if not textures[index]:
                raise ValueError("its comment TextureFile names no file")
            read = _texture(path, textures[index]).read(at_sample_points(places[number == index]))
            colours[number == index] = read[..., :3].mean(axis=1)
        return colours
    if any(textures):
        raise ValueError(f"it names the texture {textures[0]} and has no texture coordinates")
    of_faces = _scaled(path, element)
    if of_faces is not None and (owner >= 0).all():
        return of_faces[owner]
    of_vertices = _scaled(path, vertex)
    if of_vertices is not None:
        return at_sample_points(of_vertices[faces]).mean(axis=1)
    return np.broadcast_to(NEUTRAL, (len(faces), 3))


def _texture_places(
    faces: np.ndarray, corner: np.ndarray, owner: np.ndarray, vertex: PlyValues, element: PlyValues
) -> np.ndarray | None:
    """(F, 3, 2), counted from the top left: of the faces' corners, else of the vertices; None if neither."""
    if "texcoord" in element and (owner >= 0).all():
        flat = lists(element, "texcoord")
        if any(len(item) % 2 for item in flat):
            raise ValueError("a face has an odd number of texture coordinates")
        pairs = [np.asarray(item, np.float64).reshape(-1, 2) for item in flat]
        if any(len(pairs[face]) <= places.max() for face, places in zip(owner, corner, strict=True)):
            raise ValueError("a face has fewer texture coordinates than corners")
        found = np.stack([pairs[face][places] for face, places in zip(owner, corner, strict=True)])
    else:
        names = next((pair for pair in _PLACES if all(name in vertex for name in pair)), None)
        if names is None:
            return None
        found = np.stack([single(vertex, name).astype(np.float64) for name in names], axis=1)[faces]
    return np.stack([found[..., 0], 1 - found[..., 1]], axis=-1)


def _texture(path: Path, name: str) -> Texture:
    place = find_file(path.parent, name)
    if place is None:
        raise ValueError(f"its texture {name} is missing: put it beside the mesh")
    return Texture(decode_texture(place.read_bytes(), name))


def _scaled(path: Path, element: PlyValues) -> np.ndarray | None:
    """(n, 3) sRGB in [0, 1] of an element's colour properties; None if it has none."""
    names = next((three for three in _COLOURS if all(name in element for name in three)), None)
    if names is None:
        return None
    columns = [single(element, name) for name in names]
    values = np.stack([column.astype(np.float64) for column in columns], axis=1)
    kinds = [column.dtype for column in columns]
    if any(kind.kind == "f" for kind in kinds):
        if not np.isfinite(values).all() or values.max(initial=0) > 1.001:
            raise ValueError("its colours are floating-point numbers that are not between 0 and 1")
        return values.clip(0, 1)
    least, most = values.min(initial=0), values.max(initial=0)
    if least < 0:
        raise ValueError(f"its colours go down to {least:g}: they begin at 0")
    largest = np.array([np.iinfo(kind).max for kind in kinds], np.float64)
    if largest.max() > 255 and 0 < most <= 255:
        log.warning(
            "%s: its colours are of the type %s and go up to %g: they count to 255", path, kinds[0].name, most
        )
        return values / 255
    if largest.max() > 65535 and most < 1e6:
        raise ValueError(f"its colours go up to {most:g} in the type {kinds[0].name}: give them as uchar")
    return values / largest
