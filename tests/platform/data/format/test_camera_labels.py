"""Camera labels are transformed with their images: a mirrored label sees the mirrored image, and so on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from posed_scene import cameras_around, take_pictures

from mimic3d import cameras as geometry
from mimic3d_platform.data.format.camera_labels import (
    UPWARDS,
    cropped,
    label_faults,
    lose_digits,
    make_labels,
    mirrored,
    rotated,
    shortest_decimals,
    yaw_pitch_radius,
)
from mimic3d_platform.data.render.meshes import Mesh, load_folder


@pytest.fixture
def mesh(mesh_folder: Path) -> Mesh:
    return next(mesh for mesh in load_folder(mesh_folder) if mesh.identifier == "car.obj")


def test_a_mirrored_camera_sees_the_mirrored_world_as_a_mirrored_image(mesh: Mesh) -> None:
    labels = cameras_around(5)
    labels[:, 17] = 0.02  # a skew, whose sign mirroring changes
    skewed = np.array([1.0, 1, 1]) * mesh.vertices + [0.1, 0, 0]  # not the same left and right
    world = Mesh(**{**vars(mesh), "vertices": skewed})
    beyond = Mesh(**{**vars(mesh), "vertices": skewed * [-1, 1, 1]})
    twins = torch.from_numpy(mirrored(labels.numpy())).float()
    points = torch.from_numpy(skewed).float()[None].expand(5, -1, 3)
    here, _ = geometry.project(labels, points)
    there, _ = geometry.project(twins, points * torch.tensor([-1.0, 1, 1]))
    assert torch.allclose(there, torch.stack([1 - here[..., 0], here[..., 1]], dim=-1), atol=1e-5)
    assert not label_faults(twins.numpy())
    # The renderer lights the world from one side: coverage is compared, not brightness.
    seen = take_pictures(world, labels, 32)
    seen_there = take_pictures(beyond, twins, 32)
    covered, covered_there = (seen < 255).any(-1), (seen_there < 255).any(-1)
    assert covered.any(axis=(1, 2)).all() and not np.array_equal(covered, covered[:, :, ::-1])
    assert (covered_there == covered[:, :, ::-1]).mean() > 0.995


def test_mirroring_twice_is_the_same_camera() -> None:
    labels = cameras_around(7).numpy().astype(np.float64)
    assert np.allclose(mirrored(mirrored(labels)), labels, atol=1e-15)
    yaw, pitch, radius = yaw_pitch_radius(labels)
    assert np.allclose(yaw_pitch_radius(mirrored(labels)), (-yaw, pitch, radius))


def test_labels_and_positions_are_those_of_the_training() -> None:
    labels = cameras_around(7)
    expected = geometry.yaw_pitch_radius(labels)
    assert all(np.allclose(a, b) for a, b in zip(yaw_pitch_radius(labels.numpy()), expected, strict=True))
    poses, lenses = geometry.split_label(labels)
    numbers = lenses[:, [0, 1, 0, 1], [0, 1, 2, 2]].numpy()
    assert np.array_equal(make_labels(poses.numpy(), numbers).astype(np.float32), labels.numpy())


def test_a_crop_shows_what_the_cropped_camera_sees(mesh: Mesh) -> None:
    label = cameras_around(3)[1:2]
    part = torch.from_numpy(cropped(label[0].numpy(), 64, 64, 16, 24, 32)).float()[None]
    whole, crop = take_pictures(mesh, label, 64), take_pictures(mesh, part, 32)
    assert np.array_equal(whole[0, 24:56, 16:48], crop[0])


def test_a_crop_of_an_oblong_image_has_square_pixels() -> None:
    pixels = make_labels(np.eye(4)[None], np.array([[500 / 640, 500 / 480, 320 / 640, 230 / 480]]))[0]
    label = cropped(pixels, 640, 480, 80, 0, 480)
    assert label[[16, 18, 20, 21]] == pytest.approx([500 / 480, 240 / 480, 500 / 480, 230 / 480])


@pytest.mark.parametrize("up", UPWARDS)
def test_a_rotated_world_has_its_upward_axis_at_y_and_its_cameras_see_the_same(up: str) -> None:
    axis = np.zeros(3)
    axis["xyz".index(up[-1])] = -1 if up[0] == "-" else 1
    assert np.array_equal(UPWARDS[up] @ axis, [0, 1, 0]) and np.linalg.det(UPWARDS[up]) == 1
    labels = cameras_around(4)
    points = torch.rand(4, 9, 3) - 0.5
    rotation = torch.from_numpy(UPWARDS[up]).float()
    moved = torch.from_numpy(rotated(labels.numpy(), up)).float()
    before, _ = geometry.project(labels, points)
    after, _ = geometry.project(moved, points @ rotation.T)
    assert torch.allclose(before, after, atol=1e-5)


FAULTS = {
    "a number that is not finite": (3, np.nan),
    "a pose whose last row is not 0 0 0 1": (14, 0.5),
    "a pose that is not a rotation": (0, 3.0),
    "intrinsics whose last row is not 0 0 1": (24, 0.0),
    "intrinsics that are not upper triangular": (19, 0.3),
    "a focal length that is not between 0.05 and 100 image sizes": (16, 1200.0),
    "a principal point that is not between -1 and 2 image sizes": (18, 256.0),
    "a skew larger than its focal length": (17, -3.0),
}


@pytest.mark.parametrize("words", FAULTS)
def test_the_fault_of_a_camera_is_described(words: str) -> None:
    labels = cameras_around(4).numpy()
    assert label_faults(labels) == {}
    place, value = FAULTS[words]
    labels[2, place] = value
    assert label_faults(labels) == {2: words}


def test_a_mirroring_pose_is_no_camera() -> None:
    labels = cameras_around(2).numpy()
    labels[1, [0, 4, 8]] *= -1
    assert label_faults(labels) == {1: "a pose that mirrors (its determinant is -1)"}


def test_shortest_decimals_are_what_people_wrote() -> None:
    numbers = np.array([[4.2647, 0.1, -1e-7, 0.5, 1e20]])
    assert np.array_equal(shortest_decimals(numbers.astype(np.float32)), numbers)
    assert not lose_digits(np.full((3, 25), 4.2647))
    widened = np.full((5000, 25), 0.5)
    widened[-1, 3] = np.float64(np.float32(4.2647))
    assert lose_digits(widened)
