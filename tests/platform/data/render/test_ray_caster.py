"""Renders agree with geometry: depth lies on the mesh, views agree in colour and with the camera labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from mimic3d import cameras as geometry
from mimic3d_platform.data.render.meshes import Mesh, load_folder
from mimic3d_platform.data.render.ray_caster import RayCaster, Views
from mimic3d_platform.data.render.render_dataset import FOCAL, RADIUS, sample_cameras

SIDE = 24


@pytest.fixture(params=["box.ply", "car.obj", "deep/ball.glb"])
def mesh(request: pytest.FixtureRequest, mesh_folder: Path) -> Mesh:
    return next(mesh for mesh in load_folder(mesh_folder) if mesh.identifier == request.param)


def render(mesh: Mesh, cameras: torch.Tensor, side: int = SIDE, supersample: int = 3) -> Views:
    return RayCaster(mesh).render(mesh.colours, cameras, side, supersample)


def surface_points(views: Views, cameras: torch.Tensor, view: int) -> tuple[np.ndarray, np.ndarray]:
    """World points at the depths of a view, and the (flat) indices of their pixels."""
    depth = views.depth[view].reshape(-1)
    hit = np.isfinite(depth)
    origins, directions = geometry.rays(cameras[view : view + 1], geometry.pixel_grid(views.depth.shape[1]))
    points = origins[0].numpy()[hit] + directions[0].numpy()[hit] * depth[hit, None]
    return points, np.flatnonzero(hit)


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_depth_projects_back_onto_the_mesh(mesh: Mesh, supersample: int) -> None:
    cameras = sample_cameras(0, "a", 3)
    views = render(mesh, cameras, supersample=supersample)
    triangles = mesh.vertices[mesh.faces]
    for view in range(len(cameras)):
        points = surface_points(views, cameras, view)[0][::5]
        assert len(points) > 5
        distances = [
            np.linalg.norm(
                trimesh.triangles.closest_point(triangles, np.tile(point, (len(triangles), 1))) - point,
                axis=1,
            )
            for point in points
        ]
        assert np.min(distances, axis=1).max() < 1e-5


def test_two_views_of_a_point_agree_in_colour(mesh: Mesh) -> None:
    side = 96
    cameras = geometry.look_at(
        geometry.on_sphere(torch.tensor([0.4, 0.9]), torch.tensor([0.5, 0.7]), RADIUS), focal=FOCAL
    )
    views = render(mesh, cameras, side)
    points, pixels = surface_points(views, cameras, 0)
    uv, distance = geometry.project(cameras[1:], torch.from_numpy(points)[None])
    column, row = (uv[0] * side).long().unbind(-1)
    seen = np.abs(views.depth[1][row, column] - distance[0].numpy()) < 0.01
    here, there = views.images[0].reshape(-1, 3)[pixels], views.images[1][row, column]
    apart = np.abs(here[seen].astype(int) - there[seen].astype(int)).max(axis=1)
    # Pixels on an edge between two faces mix the colours of both, and may disagree.
    assert seen.sum() > 100 and np.median(apart) <= 1 and (apart <= 12).mean() > 0.85


def test_an_image_shows_a_point_where_the_project_s_cameras_put_it(mesh: Mesh) -> None:
    cameras = sample_cameras(3, "b", 4)
    views = render(mesh, cameras)
    uv, _ = geometry.project(cameras, torch.from_numpy(mesh.vertices).float().expand(4, -1, 3))
    for view in range(4):
        rows, columns = np.nonzero(views.mask[view] > 64)
        low, high = (uv[view].amin(dim=0) * SIDE).numpy(), (uv[view].amax(dim=0) * SIDE).numpy()
        assert np.abs(np.array([columns.min(), rows.min()]) - low).max() < 1.5
        assert np.abs(np.array([columns.max() + 1, rows.max() + 1]) - high).max() < 1.5


def test_up_is_up_and_the_front_is_seen_from_yaw_zero() -> None:
    """A box whose +z face is red and whose +y face is blue, seen from +z and from above it."""
    box = trimesh.creation.box()
    normals = box.face_normals
    colours = np.where(normals[:, 2:] > 0.5, [[1, 0, 0]], np.where(normals[:, 1:2] > 0.5, [[0, 0, 1]], 0.5))
    plain = np.zeros(len(colours), np.int32)
    mesh = Mesh("box", "", "", "", "", box.vertices / 2, box.faces, colours, plain.astype(np.int8), plain)
    camera = geometry.look_at(geometry.on_sphere(torch.zeros(1), torch.full((1,), 0.6), RADIUS), focal=FOCAL)
    image = render(mesh, camera).images[0].astype(int)
    column = image[:, SIDE // 2]
    blue = np.flatnonzero(column[:, 2] > column[:, 0] + 50)
    red = np.flatnonzero(column[:, 0] > column[:, 2] + 50)
    assert len(blue) and len(red) and blue.max() < red.min()


def test_edges_are_smooth_and_the_rest_is_white(mesh: Mesh) -> None:
    views = render(mesh, sample_cameras(0, "c", 2))
    assert ((views.mask > 0) & (views.mask < 255)).any() and (views.mask == 255).any()
    assert (views.images[views.mask == 0] == 255).all()
    assert np.isinf(views.depth[views.mask == 0]).all() and np.isfinite(views.depth[views.mask == 255]).all()


def test_a_camera_that_sees_nothing_sees_white(mesh: Mesh) -> None:
    away = geometry.look_at(torch.tensor([[0.0, 0.5, 1.7]]), torch.tensor([0.0, 1.0, 9.0]), focal=FOCAL)
    views = render(mesh, away)
    assert (views.images == 255).all() and (views.mask == 0).all() and np.isinf(views.depth).all()


def test_cameras_cover_the_band_of_the_hemisphere() -> None:
    cameras = sample_cameras(0, "d", 4000)
    yaw, pitch, radius = geometry.yaw_pitch_radius(cameras)
    assert torch.allclose(radius, torch.full_like(radius, RADIUS), atol=1e-5)
    heights = pitch.sin()
    low, high = np.sin(np.radians([5, 60]))
    assert heights.min() >= low - 1e-6 and heights.max() <= high + 1e-6
    assert heights.mean() == pytest.approx((low + high) / 2, abs=0.01), "uniform by area is uniform in height"
    assert abs(yaw.mean()) < 0.1 and yaw.std() == pytest.approx(np.pi / 3**0.5, abs=0.05)
    assert torch.equal(sample_cameras(0, "d", 7), cameras[:7]), "a view does not depend on how many there are"


def test_the_convex_hull_bounds_what_is_rendered(mesh: Mesh) -> None:
    caster, cameras = RayCaster(mesh), sample_cameras(0, "e", 6)
    found = caster.render(mesh.colours, cameras, SIDE, 2)
    assert len(caster._hull) <= len(mesh.vertices)
    caster._hull = mesh.vertices
    every = caster.render(mesh.colours, cameras, SIDE, 2)
    for name in ("images", "depth", "mask"):
        assert (getattr(found, name) == getattr(every, name)).all()


def test_a_flat_mesh_is_rendered_too() -> None:
    corners = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    plain = np.zeros(2, np.int32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32)
    flat = Mesh("flat", "", "", "", "", corners, faces, np.zeros((2, 3)), plain.astype(np.int8), plain)
    camera = geometry.look_at(geometry.on_sphere(torch.zeros(1), torch.full((1,), 0.3), RADIUS), focal=FOCAL)
    assert (render(flat, camera).mask == 255).sum() > 50
