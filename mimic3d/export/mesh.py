"""Coloured meshes of an identity: marching cubes on the density field."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mimic3d.export.marching_cubes import marching_cubes_in_slabs
from mimic3d.export.whole_file import whole_file
from mimic3d.networks.backbone import TriPlanes
from mimic3d.networks.generator import Generator

if TYPE_CHECKING:
    from trimesh import Trimesh

# EG3D's choice of the raw density d: at the surface the absorption softplus(d - 1) is about 9 per unit of
# length, which absorbs nine tenths of a ray within a quarter of the unit.
DENSITY_LEVEL = 10.0
FORMATS = (".ply", ".glb")
MAX_POINTS = 2**17

# Numbers that glTF 2.0 gives to types and to the use of buffers.
_UNSIGNED_SHORT, _UNSIGNED_INT, _FLOAT = 5123, 5125, 5126
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963


@torch.no_grad()
def extract_mesh(
    G: Generator,
    w: Tensor,
    *,
    branch: str = "3d",
    resolution: int = 128,
    level: float = DENSITY_LEVEL,
    watertight: bool = True,
    largest_only: bool = False,
    noise: str = "const",
    max_points: int = MAX_POINTS,
) -> Trimesh:
    """Extracts the surface on which the raw density is `level`, with colours at its vertices.

    The density is sampled and its surface extracted slab by slab: memory grows with the surface, not with the
    volume.

    Args:
        w: (1, num_ws, w_dim).
        branch: "3d" for the coarse and detail planes, "2d" for the coarse ones alone.
        resolution: samples along each side of the generator's box.
        level: raw density; softplus(level - 1) is the absorption per unit of length.
        watertight: closes the surface at the sides of the box; otherwise it is open there.
        largest_only: keeps only the connected piece with the most faces.
        noise: noise inputs of the planes: random, const or none.
        max_points: sample points in memory at a time.
    Returns:
        The mesh in world units, y up, faces oriented outwards.
    Raises:
        NoSurfaceError: the density does not cross `level` in the box.
        ValueError: several latents, or a branch that the generator does not have.
    """
    from trimesh import Trimesh

    if len(w) != 1:
        raise ValueError(f"a mesh is extracted from one latent; got {len(w)}")
    G.require_branch(branch)
    planes = G.planes(w, detail=branch == "3d", noise=noise)
    box = G.rendering.box_warp
    slices = _density_slices(G, planes, resolution, max_points)
    vertices, faces = marching_cubes_in_slabs(slices, level, closed=watertight)
    if largest_only:
        vertices, faces = _largest_piece(vertices, faces)
    vertices = vertices * (box / (resolution - 1)) - box / 2
    points = torch.from_numpy(vertices).float().to(w.device)[None]
    colours = torch.cat([G.field(planes, part)[1][0] for part in points.split(max_points, dim=1)])
    rgb = (colours.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Trimesh(vertices, faces, vertex_colors=rgb, process=False)


def _density_slices(
    G: Generator, planes: TriPlanes, resolution: int, max_points: int
) -> Iterator[np.ndarray]:
    """Raw densities in the box: for each x in turn, (resolution, resolution) over y and z."""
    box, device = G.rendering.box_warp, planes.coarse.device
    axis = torch.linspace(-box / 2, box / 2, resolution, device=device)
    rows = max(1, max_points // resolution)
    for x in axis:
        parts = []
        for y in axis.split(rows):
            points = torch.stack(torch.meshgrid(x[None], y, axis, indexing="ij"), dim=-1).reshape(1, -1, 3)
            parts.append(G.field(planes, points, outputs=0)[0].view(len(y), resolution).float().cpu())
        yield torch.cat(parts).numpy()


def _largest_piece(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices and faces of the connected piece with the most faces."""
    from trimesh.graph import connected_component_labels

    piece = connected_component_labels(np.vstack([faces[:, :2], faces[:, 1:]]), node_count=len(vertices))
    chosen = np.bincount(piece[faces[:, 0]]).argmax()
    kept = piece == chosen
    index = np.cumsum(kept) - 1
    return vertices[kept], index[faces[kept[faces[:, 0]]]]


def save_mesh(mesh: Trimesh, path: str | Path) -> Path:
    """Writes a mesh with vertex colours as `.ply` or `.glb`, by the extension of the path.

    The file appears whole or not at all. A PLY's colours are sRGB with 8 bits, as in images. A GLB's are
    linear light, as glTF defines them, with 16 bits, which show no bands in the shadows; its material is no
    metal, so that lit viewers show colours.

    Raises:
        ValueError: another extension.
    """
    from trimesh.visual import ColorVisuals

    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"meshes are written as {' or '.join(FORMATS)}; got {path.name}")
    if path.suffix.lower() == ".glb":
        assert isinstance(mesh.visual, ColorVisuals)
        colours = _linear_light(np.asarray(mesh.visual.vertex_colors))
        data = _glb(np.asarray(mesh.vertices), np.asarray(mesh.faces), colours)
    else:
        ply = mesh.export(file_type="ply")
        assert isinstance(ply, bytes)
        data = ply
    with whole_file(path) as partial:
        partial.write_bytes(data)
    return path


def _linear_light(colours: np.ndarray) -> np.ndarray:
    """(V, 4) uint16 in linear light of (V, 4) uint8 in sRGB; alpha is scaled (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    table = (linear * 65535).round().astype(np.uint16)
    return np.concatenate([table[colours[:, :3]], colours[:, 3:].astype(np.uint16) * 257], axis=1)


def _glb(vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray) -> bytes:
    """A binary glTF 2.0 file of one mesh.

    Args:
        vertices: (V, 3).
        faces: (F, 3).
        colours: (V, 4) uint16, linear light.
    """
    places = vertices.astype("<f4")
    parts = [places.tobytes(), colours.astype("<u2").tobytes(), faces.astype("<u4").tobytes()]
    offsets = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    targets = (_ARRAY_BUFFER, _ARRAY_BUFFER, _ELEMENT_BUFFER)
    document = {
        "asset": {"version": "2.0", "generator": "mimic3d"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}]}
        ],
        "materials": [
            {"doubleSided": True, "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "type": "VEC3",
                "count": len(places),
                "min": places.min(axis=0).tolist(),
                "max": places.max(axis=0).tolist(),
            },
            {
                "bufferView": 1,
                "componentType": _UNSIGNED_SHORT,
                "normalized": True,
                "type": "VEC4",
                "count": len(colours),
            },
            {"bufferView": 2, "componentType": _UNSIGNED_INT, "type": "SCALAR", "count": faces.size},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": offset, "byteLength": len(part), "target": target}
            for offset, part, target in zip(offsets, parts, targets, strict=False)
        ],
        "buffers": [{"byteLength": offsets[-1]}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(parts)  # each part has a multiple of 4 bytes, as the format asks
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
