"""Coloured meshes of an identity: marching cubes on the density field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mimic3d.export.marching_cubes import marching_cubes_in_slabs
from mimic3d.networks.backbone import TriPlanes
from mimic3d.networks.generator import Generator

if TYPE_CHECKING:
    from trimesh import Trimesh

# EG3D's choice of the raw density d: at the surface the absorption softplus(d - 1) is about 9 per unit of
# length, which absorbs nine tenths of a ray within a quarter of the unit.
DENSITY_LEVEL = 10.0
FORMATS = (".ply", ".glb")
MAX_POINTS = 2**17


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
    """Writes a mesh as `.ply` or `.glb`, by the extension of the path.

    A GLB's vertex colours are linear light, as glTF defines them; a PLY's are sRGB, as in images.

    Raises:
        ValueError: another extension.
    """
    from trimesh import Trimesh
    from trimesh.visual import ColorVisuals

    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"meshes are written as {' or '.join(FORMATS)}; got {path.name}")
    if path.suffix.lower() == ".glb":
        assert isinstance(mesh.visual, ColorVisuals)
        colours = _linear_light(np.asarray(mesh.visual.vertex_colors))
        mesh = Trimesh(mesh.vertices, mesh.faces, vertex_colors=colours, process=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = mesh.export(file_type=path.suffix.lower()[1:])
    assert isinstance(data, bytes)
    path.write_bytes(data)
    return path


def _linear_light(colours: np.ndarray) -> np.ndarray:
    """(V, 4) uint8 colours from sRGB to linear light, alpha unchanged (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    table = (linear * 255).round().astype(np.uint8)
    return np.concatenate([table[colours[:, :3]], colours[:, 3:]], axis=1)
