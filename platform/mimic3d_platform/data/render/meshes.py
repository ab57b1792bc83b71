"""Loading meshes for rendering: parts merged, centred and scaled, faces coloured, body paint identified."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimic3d_platform.data.render.mesh_parts import MeshPart
from mimic3d_platform.data.render.read_gltf import read_gltf
from mimic3d_platform.data.render.read_obj import read_obj
from mimic3d_platform.data.render.read_ply import read_ply
from mimic3d_platform.data.render.textures import other_than_expected
from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

_READERS: dict[str, Callable[[Path], list[MeshPart]]] = {
    ".obj": read_obj,
    ".glb": read_gltf,
    ".gltf": read_gltf,
    ".ply": read_ply,
}
SUFFIXES = tuple(_READERS)

# A face smaller than this, in units of the longest side squared, has no reliable normal.
_MIN_AREA = 1e-12
_DARK = 0.12
_OPAQUE = 0.9
_INVISIBLE = 0.02
_GREY = 0.35  # between the largest and the smallest of red, green and blue
_LAMP = re.compile(r"light|lamp|lens|faro|signal|focus", re.IGNORECASE)
_GLASS = re.compile(r"glass|window|crystal|cristal", re.IGNORECASE)
# The colour behind a window: the inside of a car.
_BEHIND_GLASS = np.array([0.13, 0.15, 0.19])


@dataclass(frozen=True)
class Mesh:
    """A mesh with one colour per face, its bounding box centred at the origin, the longest side 1, +y up.

    Attributes:
        vertices: (V, 3) float64, world units.
        faces: (F, 3) int32, no face degenerate.
        colours: (F, 3) float64, sRGB in [0, 1].
        paint: (F,) int8, 1 on the body's first paint, 2 on its second, 0 elsewhere.
        material: (F,) int32, index of a face's material.
    """

    identifier: str
    name: str
    author: str
    licence: str
    source: str
    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    paint: np.ndarray
    material: np.ndarray

    def digest(self) -> str:
        """SHA-256 of all that images of the mesh depend on."""
        digest = hashlib.sha256(self.identifier.encode())
        for array in (self.vertices, self.faces, self.colours, self.paint, self.material):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_mesh(
    path: Path,
    *,
    identifier: str,
    name: str = "",
    author: str = "unknown",
    licence: str = "unknown",
    source: str = "",
    paints: tuple[str, ...] = (),
) -> Mesh:
    """Reads an OBJ (with its MTL), glTF 2.0 or PLY file, in which +y is up.

    Args:
        paints: names of the materials of the body's first and second paint; identified by area when empty.
    Raises:
        ValueError: the file cannot be used; one line that says why.
    """
    for text in (identifier, name or path.stem, source or path.name):
        if text != text.encode(errors="ignore").decode():
            raise ValueError("its name is not UTF-8: rename it")
    surface = _merged(_read(path))
    return Mesh(
        identifier,
        name or path.stem,
        author,
        licence,
        source or path.name,
        surface.points,
        surface.faces.astype(np.int32),
        surface.colours,
        (_stated_paint(surface, paints) if paints else _likely_paint(surface)).astype(np.int8),
        surface.material,
    )


@dataclass(frozen=True)
class _Surface:
    """The visible faces of a mesh's parts in one.

    Attributes:
        points: (V, 3) float64, centred and scaled as those of `Mesh`.
        faces: (F, 3), none of them degenerate.
        colours: (F, 3) sRGB.
        material: (F,) int32, index of `names`.
        areas: (F,).
        opacity: the least mean opacity of a material's parts, by its index.
    """

    points: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    material: np.ndarray
    areas: np.ndarray
    names: list[str]
    opacity: dict[int, float]


def _merged(parts: list[MeshPart]) -> _Surface:
    """The parts as one surface, without invisible and degenerate faces.

    Raises:
        ValueError: no face is visible, or none has an area.
    """
    # Files of the same shape may list their parts in any order: sorted, they give the same images.
    parts = sorted(
        parts,
        key=lambda part: (
            part.material,
            len(part.faces),
            part.vertices[part.faces].min(axis=(0, 1)).tolist(),
        ),
    )
    names = sorted({part.material for part in parts})
    vertices, faces, colours, material, shown = [], [], [], [], []
    opacity: dict[int, float] = {}
    offset = 0
    for part in parts:
        index = names.index(part.material)
        vertices.append(part.vertices)
        faces.append(part.faces + offset)
        colours.append(_through_glass(part))
        shown.append(part.opacity > _INVISIBLE)
        material.append(np.full(len(part.faces), index, dtype=np.int32))
        opacity[index] = min(float(part.opacity.mean()), opacity.get(index, 1.0))
        offset += len(part.vertices)
    seen = np.concatenate(shown)
    if not seen.any():
        raise ValueError("all of its faces are transparent")
    points, face = _normalise(np.concatenate(vertices), np.concatenate(faces)[seen])
    colour, kind = np.concatenate(colours)[seen], np.concatenate(material)[seen]

    corners = points[face]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    solid = area > _MIN_AREA
    if not solid.any():
        raise ValueError("its faces have no area")
    return _Surface(points, face[solid], colour[solid], kind[solid], area[solid], names, opacity)


def _stated_paint(surface: _Surface, paints: tuple[str, ...]) -> np.ndarray:
    """(F,): the number, from 1, of the paint among the materials `paints` that a face has; 0 for none.

    Raises:
        ValueError: the mesh has none of them.
    """
    names = surface.names
    order = [names.index(paint) + 1 if paint in names else 0 for paint in paints]
    paint = np.select([surface.material + 1 == index for index in order], range(1, len(order) + 1), 0)
    if not paint.any():
        raise ValueError(f"it has none of the materials {', '.join(paints)}")
    return paint


def _read(path: Path) -> list[MeshPart]:
    """The parts of a mesh file that have faces.

    Raises:
        ValueError: whatever the reader stumbles over, so that no file ends the reading of a folder.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"it is of an unknown format: give {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if other := other_than_expected(start):
            raise ValueError(f"it {other}")
        parts = [part for part in read(path) if len(part.faces)]
    except ValueError:
        raise
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from error
    except Exception as error:
        kind = path.suffix[1:].upper()
        cause = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise ValueError(f"{path} cannot be read as {kind}: it is damaged ({cause})") from error
    if not parts:
        raise ValueError("it has no faces")
    return parts


def load_folder(folder: Path) -> list[Mesh]:
    """Every usable OBJ, GLB, glTF and PLY below `folder`, in the order of their paths.

    A file that cannot be used is skipped with a warning that says why.

    Raises:
        UserError: the folder is missing, or nothing in it can be used.
    """
    if not folder.is_dir():
        raise UserError(f"no mesh folder at {folder}: give an existing folder of OBJ, GLB, glTF or PLY files")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    meshes = []
    for path in paths:
        relative = path.relative_to(folder)
        try:
            meshes.append(load_mesh(path, identifier=relative.as_posix(), source=relative.as_posix()))
        except ValueError as error:
            # A name that is not UTF-8 is shown escaped, or the line could not be written everywhere.
            shown = os.fsencode(path).decode(errors="backslashreplace")
            log.warning("skipped the mesh %s: %s", shown, error)
    if not meshes:
        found = f"none of its {len(paths)} mesh files can be used" if paths else "it has no mesh file"
        raise UserError(f"no usable mesh in {folder}: {found}; give OBJ, GLB, glTF or PLY files with faces")
    return meshes


def _normalise(points: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices in use, centred and scaled to a longest side of 1, and the faces that index them."""
    if faces.min() < 0 or faces.max() >= len(points):
        raise ValueError("its faces refer to vertices that do not exist")
    used, faces = np.unique(faces, return_inverse=True)
    points, faces = points[used], faces.reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("it has coordinates that are not finite")
    low, high = points.min(axis=0), points.max(axis=0)
    if (high - low).max() <= 0:
        raise ValueError("its faces have no area")
    return (points - (low + high) / 2) / (high - low).max(), faces


def _through_glass(part: MeshPart) -> np.ndarray:
    """(F, 3) sRGB: grey faces that are not opaque show the dark inside; lamps and coloured glass do not."""
    if _LAMP.search(part.material):
        return part.colours
    clear = (part.opacity < _OPAQUE) & (np.ptp(part.colours, axis=1) < _GREY)
    share = part.opacity[:, None]
    return np.where(clear[:, None], part.colours * share + _BEHIND_GLASS * (1 - share), part.colours)


def _likely_paint(surface: _Surface) -> np.ndarray:
    """(F,) bool: whether a face has the body's paint, judged by its material."""
    return np.isin(surface.material, _largest_bright(surface))


def _largest_bright(surface: _Surface) -> list[int]:
    """The materials of the body's paint: opaque, not dark, not glass, and with the largest area."""
    names, kind, opacity = surface.names, surface.material, surface.opacity
    total = np.bincount(kind, weights=surface.areas, minlength=len(names))
    mean = np.stack(
        [
            np.bincount(kind, weights=surface.areas * channel, minlength=len(names))
            for channel in surface.colours.T
        ]
    )
    bright = (mean / np.maximum(total, 1e-12)).max(axis=0) > _DARK
    clear = [index for index, name in enumerate(names) if opacity[index] < _OPAQUE or _GLASS.search(name)]
    bright[clear] = False
    if not bright.any():
        return list(range(len(names)))
    best = total[bright].max()
    return [index for index in range(len(names)) if bright[index] and total[index] >= best / 2]
