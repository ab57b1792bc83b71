"""Loading meshes for rendering: parts merged, centred and scaled, faces coloured, body paint identified."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from trimesh.visual.color import ColorVisuals

from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

SUFFIXES = (".obj", ".glb", ".ply")

# A face smaller than this, in units of the longest side squared, has no reliable normal.
_MIN_AREA = 1e-12
_DARK = 0.12
_OPAQUE = 0.9
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
    """Reads an OBJ (with its MTL), GLB or PLY file, in which +y is up.

    Args:
        paints: names of the materials of the body's first and second paint; identified by area when empty.
    Raises:
        ValueError: the file cannot be used; one line that says why.
    """
    try:
        scene = trimesh.load_scene(str(path))
        parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"it cannot be read ({reason})") from error
    if not parts:
        raise ValueError("it has no faces")

    # The order of a scene's parts varies: sort them, so that another run renders the same bytes.
    parts.sort(key=lambda part: (_material_name(part), len(part.faces), part.bounds.tolist()))
    names = sorted({_material_name(part) for part in parts})
    vertices, faces, colours, material = [], [], [], []
    opacity: dict[int, float] = {}
    offset = 0
    for part in parts:
        colour, alpha = _face_colours(part)
        vertices.append(np.asarray(part.vertices, dtype=np.float64))
        faces.append(np.asarray(part.faces, dtype=np.int64) + offset)
        colours.append(colour)
        index = names.index(_material_name(part))
        material.append(np.full(len(part.faces), index, dtype=np.int32))
        opacity[index] = min(alpha, opacity.get(index, 1.0))
        offset += len(part.vertices)
    points, face = _normalise(np.concatenate(vertices), np.concatenate(faces))
    colour, kind = np.concatenate(colours), np.concatenate(material)

    corners = points[face]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    solid = area > _MIN_AREA
    if not solid.any():
        raise ValueError("its faces have no area")
    face, colour, kind, area = face[solid], colour[solid], kind[solid], area[solid]
    if paints:
        order = [names.index(paint) + 1 if paint in names else 0 for paint in paints]
        paint = np.select([kind + 1 == index for index in order], range(1, len(order) + 1), 0)
        if not paint.any():
            raise ValueError(f"it has none of the materials {', '.join(paints)}")
    else:
        paint = np.isin(kind, _largest_bright(colour, kind, area, names, opacity)).astype(np.int64)
    return Mesh(
        identifier,
        name or path.stem,
        author,
        licence,
        source or path.name,
        points,
        face.astype(np.int32),
        colour,
        paint.astype(np.int8),
        kind,
    )


def load_folder(folder: Path) -> list[Mesh]:
    """Every usable OBJ, GLB and PLY below `folder`, in the order of their paths.

    A file that cannot be used is skipped with a warning that says why.

    Raises:
        UserError: the folder is missing, or nothing in it can be used.
    """
    if not folder.is_dir():
        raise UserError(f"no mesh folder at {folder}: give an existing folder of OBJ, GLB or PLY files")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    meshes = []
    for path in paths:
        relative = path.relative_to(folder)
        try:
            meshes.append(load_mesh(path, identifier=relative.as_posix(), source=relative.as_posix()))
        except ValueError as error:
            log.warning("skipped the mesh %s: %s", path, error)
    if not meshes:
        found = f"none of its {len(paths)} mesh files can be used" if paths else "it has no mesh file"
        raise UserError(f"no usable mesh in {folder}: {found}; give OBJ, GLB or PLY files with faces")
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


def _material_name(part: trimesh.Trimesh) -> str:
    return str(getattr(getattr(part.visual, "material", None), "name", None) or "")


def _face_colours(part: trimesh.Trimesh) -> tuple[np.ndarray, float]:
    """(F, 3) sRGB in [0, 1], and the material's opacity."""
    if isinstance(part.visual, ColorVisuals):
        return np.asarray(part.visual.face_colors, dtype=np.float64)[:, :3] / 255, 1.0
    assert part.visual is not None
    material = part.visual.material
    base = np.asarray(material.main_color, dtype=np.float64) / 255
    alpha = float(base[3])
    dissolve = getattr(material, "kwargs", {}).get("d")
    if dissolve:
        alpha = min(alpha, float(dissolve[0]))
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    uv = getattr(part.visual, "uv", None)
    if image is not None and uv is not None and len(uv) == len(part.vertices):
        colours = _texture_means(np.asarray(image.convert("RGB")), np.asarray(uv)[part.faces])
    else:
        colours = np.tile(base[:3], (len(part.faces), 1))
    if alpha < _OPAQUE and not _LAMP.search(material.name or ""):
        grey = np.ptp(base[:3]) < 0.35
        colours = colours * alpha + _BEHIND_GLASS * (1 - alpha) if grey else colours
    return colours, alpha


def _texture_means(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """(F, 3): the mean of a texture (H, W, 3) at seven points of each face; `uv` is (F, 3, 2)."""
    weights = np.array(
        [[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4], [2, 2, 0.1], [2, 0.1, 2], [0.1, 2, 2]], dtype=np.float64
    )
    points = np.einsum("sk,fkc->fsc", weights / weights.sum(axis=1, keepdims=True), uv) % 1.0
    height, width = image.shape[:2]
    column = np.minimum((points[..., 0] * width).astype(int), width - 1)
    row = np.minimum(((1 - points[..., 1]) * height).astype(int), height - 1)
    return image[row, column].mean(axis=1) / 255


def _largest_bright(
    colours: np.ndarray, kind: np.ndarray, area: np.ndarray, names: list[str], opacity: dict[int, float]
) -> list[int]:
    """The materials of the body's paint: opaque, not dark, not glass, and with the largest area."""
    total = np.bincount(kind, weights=area, minlength=len(names))
    mean = np.stack(
        [np.bincount(kind, weights=area * channel, minlength=len(names)) for channel in colours.T]
    )
    bright = (mean / np.maximum(total, 1e-12)).max(axis=0) > _DARK
    clear = [index for index, name in enumerate(names) if opacity[index] < _OPAQUE or _GLASS.search(name)]
    bright[clear] = False
    if not bright.any():
        return list(range(len(names)))
    best = total[bright].max()
    return [index for index in range(len(names)) if bright[index] and total[index] >= best / 2]
