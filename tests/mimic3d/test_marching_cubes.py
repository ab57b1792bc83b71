"""Marching cubes in slabs: the same closed surface as in one piece, in a fraction of the memory."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trimesh
from trimesh import Trimesh

from mimic3d.export.marching_cubes import NoSurfaceError, marching_cubes_in_slabs

ROOT = Path(__file__).parents[2]


def rough_volume(size: int, cell: int) -> np.ndarray:
    """Trilinear noise: pieces, tunnels and ambiguous cells everywhere, up to the sides."""
    source = torch.Generator().manual_seed(size + cell)
    coarse = torch.randn(1, 1, *(size // cell,) * 3, generator=source)
    return (F.interpolate(coarse, size=(size,) * 3, mode="trilinear") * 30)[0, 0].numpy()


def mesh_of(volume: np.ndarray, level: float, **settings) -> Trimesh:
    return Trimesh(*marching_cubes_in_slabs(iter(volume), level, **settings), process=False)


@pytest.mark.parametrize("cell", [2, 4, 8])
def test_the_mesh_does_not_depend_on_the_slab_size(cell: int) -> None:
    volume = rough_volume(24, cell)
    whole = mesh_of(volume, 3.0, closed=True, slab=100)
    for slab in (2, 3, 7):
        pieces = mesh_of(volume, 3.0, closed=True, slab=slab)
        assert pieces.is_watertight and pieces.is_winding_consistent
        assert (len(pieces.vertices), len(pieces.faces)) == (len(whole.vertices), len(whole.faces))
        assert pieces.volume == pytest.approx(whole.volume, rel=1e-6)
        order, other = (np.lexsort(np.round(m.vertices, 4).T) for m in (pieces, whole))
        assert np.abs(pieces.vertices[order] - whole.vertices[other]).max() < 1e-3


def test_values_that_lie_on_the_level_leave_no_hole() -> None:
    volume = np.zeros((12, 12, 12), np.float32)
    volume[3:9, 3:9, 3:9] = 1
    volume[4:6, 4:6, 4:6] = 0.5
    mesh = mesh_of(volume, 0.5, closed=True, slab=4)
    assert mesh.is_watertight and mesh.volume > 0


def test_an_open_surface_ends_at_the_side_and_a_closed_one_is_closed_there() -> None:
    ramp = np.broadcast_to(np.linspace(1, -1, 9, dtype=np.float32)[:, None, None], (9, 5, 5))
    flat, closed = (mesh_of(ramp, 0.0, closed=closed, slab=3) for closed in (False, True))
    assert not flat.is_watertight and np.abs(flat.vertices[:, 0] - 4).max() < 0.01
    assert flat.area == pytest.approx(16, rel=1e-4)
    assert closed.is_watertight and closed.volume == pytest.approx(4 * 16, rel=0.01)
    assert closed.bounds == pytest.approx(np.array([[0, 0, 0], [4, 4, 4]]), abs=0.01)


def test_an_open_surface_may_reach_every_side() -> None:
    volume = rough_volume(24, 4)
    whole = mesh_of(volume, 3.0, closed=False, slab=100)
    assert not whole.is_watertight and whole.is_winding_consistent
    for axis in range(3):
        assert (whole.vertices[:, axis] == 0).any() and (whole.vertices[:, axis] == 23).any()
    for slab in (2, 5):
        pieces = mesh_of(volume, 3.0, closed=False, slab=slab)
        assert (len(pieces.vertices), len(pieces.faces)) == (len(whole.vertices), len(whole.faces))
        assert pieces.area == pytest.approx(whole.area, rel=1e-6)


@pytest.mark.parametrize("ending", ["ply", "glb"])
@pytest.mark.parametrize("steepness", [1e-3, 1.0, 1e3])
def test_merging_near_vertices_keeps_the_mesh_watertight(ending: str, steepness: float) -> None:
    volume = rough_volume(32, 2) * steepness
    volume[5:9, 5:9, 5:9] = 3 * steepness  # flat, and on the level
    volume[::7, ::5, ::3] += 1e-6 * steepness
    mesh = mesh_of(volume, 3.0 * steepness, closed=True)
    mesh.apply_transform(np.diag([1 / 512] * 3 + [1]))  # as small as the cells of a fine mesh are
    read = trimesh.load(io.BytesIO(mesh.export(file_type=ending)), file_type=ending, force="mesh")
    read.merge_vertices()
    assert len(read.vertices) == len(mesh.vertices) and read.is_watertight
    assert read.volume == pytest.approx(mesh.volume, rel=1e-4)


def test_a_volume_without_a_surface_is_refused() -> None:
    volume = np.full((4, 4, 4), 2.0, np.float32)
    for closed in (False, True):
        with pytest.raises(NoSurfaceError, match="the density reaches 2 in the box, below the level 3"):
            marching_cubes_in_slabs(iter(volume), 3.0, closed=closed)
    with pytest.raises(NoSurfaceError, match="above 1 in the whole box; give a higher level"):
        marching_cubes_in_slabs(iter(volume), 1.0, closed=False)
    assert mesh_of(volume, 1.0, closed=True).volume == pytest.approx(27, rel=0.01)


GROWTH = """
import resource, torch
torch.set_num_threads(1)
from mimic3d.config import ModelConfig, RenderingConfig
from mimic3d.export.mesh import extract_mesh
from mimic3d.networks.generator import Generator

class Ball(Generator):
    def field(self, planes, points, outputs=3):
        density = 10 + 100 * (0.05 - points.square().sum(dim=-1, keepdim=True))
        return density, torch.zeros(*points.shape[:2], outputs)

model = ModelConfig(32, 16, 8, 8, 8, 2, 64, 8, 64, 8, 16, (8, 8))
ball, w = Ball(model, RenderingConfig(0.6, 2.6, 1.6)), torch.zeros(1, 4, 8)
extract_mesh(ball, w, resolution=16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mesh = extract_mesh(ball, w, resolution=192, max_points=2**14)
print(len(mesh.faces), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_the_memory_of_a_mesh_is_less_than_that_of_its_volume() -> None:
    run = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, cwd=ROOT)
    faces, growth = map(int, run.stdout.split())
    assert faces > 5_000
    assert growth < 4 * 192**3, f"{growth / 2**20:.0f} MiB for a volume of 27 MiB"
