"""Reading Wavefront OBJ files and their MTL materials.

Colours (`Kd`, `Ke`, vertex colours, textures) are sRGB. A texture (`map_Kd`) is multiplied by `Kd` only where
`Kd` is a colour: exporters write any grey, black among them, beside a texture that replaces it. A wholly
invisible material (`d 0`, `Tr 1`) is opaque, since programs that count `Tr` the other way write that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mimic3d_platform.data.render.mesh_parts import NEUTRAL, MeshPart, at_sample_points, counted_to_255
from mimic3d_platform.data.render.obj_statements import (
    possible_names,
    reason,
    rest_of,
    statements,
    without_comment,
)
from mimic3d_platform.data.render.polygons import triangulate
from mimic3d_platform.data.render.read_mtl import Material, read_mtl
from mimic3d_platform.data.render.textures import find_file

log = logging.getLogger(__name__)

# Statements of curved surfaces and of other files, without which a part of the shape would be missing.
_SHAPES_NOT_READ = ("curv", "curv2", "surf", "cstype", "deg", "bmat", "call", "csh", "con")


@dataclass
class _Faces:
    """The polygons of one material: for each, the indices of its corners and of their texture coordinates."""

    corners: list[list[int]] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)


def read_obj(path: Path) -> list[MeshPart]:
    """The parts of an OBJ file, one for each material.

    Raises:
        ValueError: it cannot be read, or it needs a material, a texture or a statement that is not read.
    """
    data = path.read_bytes()
    points, shades, places, groups, libraries = _parse(statements(data))
    if not any(faces.corners for faces in groups.values()):
        raise ValueError("it has no faces")
    _check_faces(groups, len(points), len(places))
    colours = None
    if shades:
        colours = np.full((len(points), 3), np.nan)
        colours[list(shades)] = counted_to_255(
            np.array(list(shades.values())), f"{path}: colours of vertices"
        )
    elif b"#MRGB" in data:
        log.warning("%s: the colours of vertices in ZBrush's #MRGB comments are not read", path)
    files = [file for library in libraries for file in _material_files(path.parent, library)]
    materials: dict[str, Material] = {}
    for file in files:
        materials = read_mtl(file) | materials
    names = {name: name if name in materials else without_comment(name) for name in groups}
    if lacking := sorted(name for name in names.values() if name and name not in materials):
        if libraries:
            listed = ", ".join(file.name for file in files)
            raise ValueError(f"its material {lacking[0]} is not in {listed}")
        log.warning("%s names materials and no material file: it is drawn grey", path)
    return [
        _part(names[name], materials.get(names[name]), faces, points, colours, places)
        for name, faces in groups.items()
        if faces.corners
    ]


def _material_files(folder: Path, text: str) -> list[Path]:
    """The file that a `mtllib` names, or the files if it names several."""
    names = possible_names(text)
    if not names:
        raise ValueError("its statement mtllib names no file")
    for name in names:
        if (place := find_file(folder, name)) is not None:
            return [place]
    words = names[-1].split()
    several = all(word.lower().endswith(".mtl") for word in words)
    files = []
    for name in words if several else names[-1:]:
        place = find_file(folder, name)
        if place is None:
            raise ValueError(f"its material file {name} is missing: put it beside the mesh")
        files.append(place)
    return files


def _parse(
    lines: Iterator[tuple[list[str], str]],
) -> tuple[np.ndarray, dict[int, list[float]], np.ndarray, dict[str, _Faces], list[str]]:
    """Points (V, 3), colours by vertex, texture coordinates (T, 2), faces by material, names of MTLs."""
    points: list[list[float]] = []
    colours: dict[int, list[float]] = {}
    places: list[list[float]] = []
    groups: dict[str, _Faces] = {}
    libraries: list[str] = []
    faces = groups.setdefault("", _Faces())
    for words, line in lines:
        kind = words[0]
        try:
            if kind == "v":
                values = [float(word) for word in words[1:]]
                points.append(values[:3])
                if len(values) < 3:
                    raise ValueError("fewer than 3 numbers")
                if len(values) >= 6:
                    colours[len(points) - 1] = values[3:6] if len(values) == 6 else values[-4:-1]
            elif kind == "vt":
                values = [_number(word) for word in words[1:3]]
                places.append(values if len(values) == 2 else [*values, 0.0])
            elif kind in ("f", "fo"):  # codespell:ignore fo
                corner, place = _corners(words[1:], len(points), len(places))
                faces.corners.append(corner)
                faces.places.append(place)
            elif kind == "usemtl":
                faces = groups.setdefault(" ".join(rest_of(line).split()), _Faces())
            elif kind == "mtllib":
                libraries.append(rest_of(line))
            elif kind == "usemap" and words[1:] != ["off"]:
                raise ValueError("a texture map without a material")
            elif kind in _SHAPES_NOT_READ:
                raise ValueError("curved surfaces and other files are not read: export polygons")
        except (ValueError, IndexError) as error:
            raise ValueError(f"its line {' '.join(words)[:60]!r} is not read ({reason(error)})") from error
    place_array = np.array(places, dtype=np.float64).reshape(-1, 2)
    return np.array(points, dtype=np.float64).reshape(-1, 3), colours, place_array, groups, libraries


def _number(word: str) -> float:
    """A number, NaN for what C libraries write for one: `-nan(ind)`, `1.#QNAN`."""
    try:
        return float(word)
    except ValueError:
        lower = word.lower()
        if "nan" in lower or "#ind" in lower or "#inf" in lower:
            return float("nan")
        raise


def _corners(words: list[str], points: int, places: int) -> tuple[list[int], list[int]]:
    """The indices of a face's points and texture coordinates, counted from 0; -1 for none of the latter."""
    corners, chosen = [], []
    for word in words:
        parts = word.split("/")
        corners.append(_index(parts[0], points))
        chosen.append(_index(parts[1], places) if len(parts) > 1 and parts[1] else -1)
    if len(corners) < 3:
        raise ValueError("a face has at least 3 corners")
    return corners, chosen


def _index(word: str, count: int) -> int:
    """Counted from 0. A number above `count` may be of a later line: `_check_faces` sees whether it is."""
    number = int(word)
    index = number - 1 if number > 0 else count + number
    if number == 0 or index < 0:
        raise ValueError(f"there is no number {number} among {count}")
    return index


def _check_faces(groups: dict[str, _Faces], points: int, places: int) -> None:
    for faces in groups.values():
        for lists, count, what in (
            (faces.corners, points, "vertices"),
            (faces.places, places, "texture coordinates"),
        ):
            most = max((max(each) for each in lists), default=-1)
            if most >= count:
                raise ValueError(f"a face of it names number {most + 1} of its {count} {what}")


def _part(
    name: str,
    material: Material | None,
    faces: _Faces,
    points: np.ndarray,
    colours: np.ndarray | None,
    places: np.ndarray,
) -> MeshPart:
    corner, owner = triangulate(points, faces.corners)
    # A polygon's k-th corner is at its first corner's place in the flat lists, and k more.
    starts = np.cumsum([0, *(len(each) for each in faces.corners)])[owner][:, None]
    face = np.array([index for each in faces.corners for index in each])[starts + corner]
    chosen = np.array([index for each in faces.places for index in each])[starts + corner]
    count = len(face)
    opacity = np.ones(count)
    shade = np.broadcast_to(NEUTRAL, (count, 3)).copy()
    own = None if colours is None else colours[face]
    if own is not None:
        coloured = np.isfinite(own).all(axis=(1, 2))
        shade[coloured] = at_sample_points(own[coloured]).mean(axis=1)
    if material is not None:
        flat = NEUTRAL if material.diffuse is None else material.diffuse
        if material.texture is not None:
            read = material.texture.read(_texture_places(name, places, chosen))[..., :3].mean(axis=1)
            tinted = material.diffuse is not None and np.ptp(material.diffuse) > 0.01
            shade = read * flat if tinted else read
        elif own is None:
            shade[:] = flat
        else:
            shade[~coloured] = flat
        shade = np.minimum(shade + _emission(name, material, places, chosen), 1)
        opacity *= material.opacity
        if material.opacity_map is not None:
            values = material.opacity_map.read_channel(_texture_places(name, places, chosen))
            opacity *= values.mean(axis=1)
    return MeshPart(name, points, face, shade, opacity)


def _emission(name: str, material: Material, places: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(3,) or (F, 3): `Ke` times `map_Ke`; where `Ke` is not stated, the texture itself."""
    if material.emissive_map is None:
        return np.zeros(3) if material.emissive is None else material.emissive
    read = material.emissive_map.read(_texture_places(name, places, chosen))[..., :3].mean(axis=1)
    return read if material.emissive is None else read * material.emissive


def _texture_places(name: str, places: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(F, 7, 2): the texture coordinates of the sample points of faces."""
    if (chosen < 0).any():
        raise ValueError(f"its material {name} has a texture and a face of it has no texture coordinates")
    return at_sample_points(places[chosen])
