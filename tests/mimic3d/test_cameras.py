"""Labels, rays and projections, in OpenCV's axes and the world's (y up)."""

import dataclasses
import math

import pytest
import torch

from mimic3d import cameras
from mimic3d.config import CameraConfig
from mimic3d.export.orbits import at_yaw, front, orbit, turntable

torch.set_num_threads(1)


def some_positions(count: int = 5) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    yaw = torch.rand(count, generator=source) * 6
    pitch = torch.rand(count, generator=source) * 2 - 1
    return cameras.on_sphere(yaw, pitch, 1.7)


def skewed_cameras() -> torch.Tensor:
    """Two cameras with a skew, unequal focal lengths and a principal point off the centre."""
    pose, _ = cameras.split_label(cameras.look_at(some_positions(2)))
    intrinsic = torch.tensor([[1.2, 0.13, 0.44], [0, 0.9, 0.57], [0, 0, 1]])
    return cameras.make_label(pose, intrinsic)


def test_a_camera_in_front_looks_back_with_x_to_the_right_and_y_down() -> None:
    pose, intrinsic = cameras.split_label(cameras.look_at(torch.tensor([0.0, 0.0, 2.0]), focal=1.5))
    # From +z the world's +x is to the right of the image, its +y is up, and forward is -z.
    expected = [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]]
    assert torch.allclose(pose, torch.tensor(expected, dtype=torch.float32))
    assert intrinsic.tolist() == [[1.5, 0, 0.5], [0, 1.5, 0.5], [0, 0, 1]]


def test_poses_are_rotations_that_keep_the_horizon_level() -> None:
    pose, _ = cameras.split_label(cameras.look_at(some_positions()))
    rotation = pose[:, :3, :3]
    identity = torch.eye(3).expand(5, 3, 3)
    assert torch.allclose(rotation @ rotation.transpose(1, 2), identity, atol=1e-6)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(5))
    assert rotation[:, 1, 0].abs().max() < 1e-6, "the image's right has no height"
    assert (rotation[:, 1, 1] < 0).all(), "the image's down points down"


def test_the_target_projects_to_the_centre_at_its_distance() -> None:
    target = torch.tensor([0.2, -0.1, 0.3])
    camera = cameras.look_at(some_positions(), target)
    uv, distance = cameras.project(camera, target.expand(5, 1, 3))
    assert torch.allclose(uv, torch.full_like(uv, 0.5), atol=1e-5)
    assert torch.allclose(distance[:, 0], (some_positions() - target).norm(dim=1).float(), atol=1e-5)


def test_yaw_pitch_and_radius_are_read_back() -> None:
    yaw, pitch = torch.tensor([0.0, 1.0, -2.5]), torch.tensor([0.1, -0.4, 0.9])
    pivot = torch.tensor([0.1, 0.2, 0.3])
    camera = cameras.look_at(cameras.on_sphere(yaw, pitch, 1.3, pivot), pivot)
    for found, expected in zip(
        cameras.yaw_pitch_radius(camera, pivot), (yaw, pitch, torch.full((3,), 1.3)), strict=True
    ):
        assert torch.allclose(found, expected.double(), atol=1e-6)


def test_rays_follow_the_formula_of_the_method() -> None:
    camera = skewed_cameras()
    i, j, resolution = 3, 6, 8
    uv = cameras.pixel_grid(resolution)
    origins, directions = cameras.rays(camera, uv)
    u, v = (j + 0.5) / resolution, (i + 0.5) / resolution
    assert uv[i * resolution + j].tolist() == [u, v]
    for n in range(2):
        pose, k = (part[n] for part in cameras.split_label(camera.double()))
        fx, fy, s, cx, cy = k[0, 0], k[1, 1], k[0, 1], k[0, 2], k[1, 2]
        local = torch.stack([(u - cx + cy * s / fy - s * v / fy) / fx, (v - cy) / fy, torch.ones_like(fx)])
        direction = pose[:3, :3] @ local
        expected = (direction / direction.norm()).float()
        assert torch.allclose(directions[n, i * resolution + j], expected, atol=1e-6)
        assert torch.equal(origins[n, 0], camera[n].view(-1)[[3, 7, 11]])


@pytest.mark.parametrize("camera", [cameras.look_at(some_positions(2)), skewed_cameras()])
def test_projecting_a_point_of_a_ray_gives_its_pixel_and_distance(camera: torch.Tensor) -> None:
    uv = cameras.pixel_grid(6)
    origins, directions = cameras.rays(camera, uv)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(2, 36))
    depth = torch.linspace(0.3, 3, 36)
    found, distance = cameras.project(camera, origins + depth[:, None] * directions)
    assert torch.allclose(found, uv.expand_as(found), atol=1e-5)
    assert torch.allclose(distance, depth.expand(2, -1), atol=1e-5)
    _, behind = cameras.project(camera, origins - directions)
    assert (behind < 0).all()


def test_each_camera_may_have_pixels_of_its_own() -> None:
    camera = skewed_cameras()
    uv = torch.rand(2, 7, 2, generator=torch.Generator().manual_seed(1))
    _, together = cameras.rays(camera, uv)
    for n in range(2):
        assert torch.allclose(together[n], cameras.rays(camera[n : n + 1], uv[n])[1][0], atol=1e-6)


def test_turntables_cover_the_circle_or_the_yaw_range() -> None:
    round_ = CameraConfig(radius=1.7, focal=1.2, pivot=(0.0, 0.1, 0.0), pitch=0.3, yaw_range=math.pi)
    pivot = torch.tensor(round_.pivot)
    for path in (turntable(round_, 8), orbit(round_, 8)):
        yaw, pitch, radius = cameras.yaw_pitch_radius(path, pivot)
        steps = (yaw.roll(-1) - yaw) % (2 * math.pi)
        assert torch.allclose(steps, torch.full_like(steps, math.pi / 4), atol=1e-5), "equal steps, closed"
        assert torch.allclose(pitch, torch.full_like(pitch, 0.3), atol=1e-6)
        assert torch.allclose(radius, torch.full_like(radius, 1.7), atol=1e-6)
    narrow = dataclasses.replace(round_, yaw_range=0.4)
    yaw, _, _ = cameras.yaw_pitch_radius(turntable(narrow, 5), pivot)
    assert torch.allclose(yaw, torch.linspace(-0.4, 0.4, 5, dtype=torch.float64), atol=1e-6)
    yaw, _, _ = cameras.yaw_pitch_radius(orbit(narrow, 8), pivot)
    assert yaw.abs().max() <= 0.4 + 1e-6 and yaw[0].abs() < 1e-6
    assert (yaw.roll(-1) - yaw).abs().max() < 0.4, "to and fro without a jump"
    assert torch.equal(front(narrow), at_yaw(narrow, torch.zeros(1, dtype=torch.float64)))
