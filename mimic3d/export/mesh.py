"""Coloured meshes of an identity: marching cubes on the density field."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mimic3d.networks.backbone import TriPlanes
from mimic3d.networks.generator import Generator

if TYPE_CHECKING:
    from trimesh import Trimesh

# EG3D's choice, on the raw density d: the surface is where light is absorbed at softplus(d - 1), about 9 per
# unit of length, nine tenths of it within a quarter of the unit.
DENSITY_LEVEL = 10.0
FORMATS = (".ply", ".glb")


@torch.no_grad()
def extract_mesh(
    G: Generator,
    w: Tensor,
    *,
    branch: str = "3d",
    resolution: int = 128,
    level: float = DENSITY_LEVEL,
    max_points: int = 2**18,
) -> Trimesh:
    """The surface on which the raw density has the value `level`, with colours at its vertices.

    Where the object reaches the side of the box it is closed there, so the mesh is watertight.

    Args:
        w: (1, num_ws, w_dim).
        branch: "3d" for the coarse and detail planes, "2d" for the coarse ones alone.
        resolution: samples along each side of the generator's box.
        level: raw density; softplus(level - 1) is the absorption per unit of length.
        max_points: evaluated at a time.
    Returns:
        The mesh in world units, y up, faces outwards.
    Raises:
        ValueError: the density does not cross `level` in the box.
    """
    import numpy as np
    from skimage.measure import marching_cubes
    from trimesh import Trimesh

    if len(w) != 1:
        raise ValueError(f"a mesh is of one identity; got {len(w)} latents")
    planes = G.planes(w, detail=branch == "3d", noise="const")
    box = G.rendering.box_warp
    axis = torch.linspace(-box / 2, box / 2, resolution, device=w.device)
    slices = []
    for x in axis:  # A slice at a time: memory stays that of the volume however fine it is.
        points = torch.stack(torch.meshgrid(x[None], axis, axis, indexing="ij"), dim=-1).reshape(1, -1, 3)
        slices.append(_field(G, planes, points, max_points)[0].view(resolution, resolution).cpu())
    volume = torch.stack(slices).numpy()
    highest = float(volume.max())
    if highest <= level:
        raise ValueError(
            f"no surface: the density reaches {highest:.3g} in the box, level {level:g} is not below it; "
            "give a lower level or train for longer"
        )
    step = box / (resolution - 1)
    # Far below the level, so that what reaches the side of the box is closed at the side, not beyond it.
    padded = np.pad(volume, 1, constant_values=level - 1000 * (highest - level))
    vertices, faces, _, _ = marching_cubes(padded, level, spacing=(step,) * 3, gradient_direction="ascent")
    vertices = vertices - (box / 2 + step)
    colours = _field(G, planes, torch.from_numpy(vertices).float().to(w.device)[None], max_points)[1]
    rgb = (colours.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Trimesh(vertices, faces, vertex_colors=rgb, process=False)


def save_mesh(mesh: Trimesh, path: str | Path) -> Path:
    """Write a mesh as `.ply` or `.glb`, by the path's ending.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"meshes are written as {' or '.join(FORMATS)}; got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = mesh.export(file_type=path.suffix.lower()[1:])
    path.write_bytes(data)
    return path


def _field(G: Generator, planes: TriPlanes, points: Tensor, max_points: int) -> tuple[Tensor, Tensor]:
    """Raw density (M,) and RGB (M, 3) at (1, M, 3) points."""
    found = [G.field(planes, part) for part in points.split(max_points, dim=1)]
    return torch.cat([d for d, _ in found], 1)[0, :, 0], torch.cat([rgb for _, rgb in found], 1)[0]
