"""What cameras say of their scene: where the objects are, how large, and what near, far and box hold them."""

import math

import numpy as np
import pytest
import torch

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d.training.scene_fit import fit_scene


def around(
    radius: float, focal: float, pivot=(0.0, 0.0, 0.0), yaw: float = math.pi, count: int = 60
) -> np.ndarray:
    """Labels of cameras spread around a pivot at one distance."""
    random = torch.Generator().manual_seed(0)
    yaws = (torch.rand(count, generator=random) * 2 - 1) * yaw
    pitches = torch.rand(count, generator=random) * 0.8
    centre = torch.tensor(pivot)
    return look_at(on_sphere(yaws, pitches, radius, centre), centre, focal=focal).numpy()


@pytest.mark.parametrize(("radius", "focal"), [(1.7, 1.0254), (2.7, 4.2647), (0.05, 1.2), (400.0, 2.0)])
def test_near_far_and_box_hold_what_the_image_shows(radius: float, focal: float) -> None:
    scene = fit_scene(around(radius, focal))
    visible = radius * math.sin(math.atan(0.5 / focal))
    assert scene.radius == pytest.approx(visible, rel=1e-4)
    # Rounded outwards, by less than one in a hundred.
    assert 0.99 * (radius - visible) <= scene.near <= (radius - visible) * (1 + 1e-6)
    assert radius + visible <= scene.far * (1 + 1e-6) and scene.far <= 1.01 * (radius + visible)
    assert 2 * visible <= scene.box_warp * (1 + 1e-6) and scene.box_warp <= 1.01 * 2 * visible
    assert scene.focal == pytest.approx(focal, rel=1e-4) and scene.looking == 1.0


def test_the_published_settings_of_faces_hold_what_faces_want() -> None:
    faces = Config()
    camera = faces.camera
    scene = fit_scene(around(camera.radius, camera.focal, camera.pivot, camera.yaw_range))
    assert scene.pivot == pytest.approx(camera.pivot, abs=1e-3)
    assert faces.rendering.near < scene.near and scene.far < faces.rendering.far
    assert scene.box_warp == pytest.approx(faces.rendering.box_warp, rel=0.05)
    assert scene.yaw_range == pytest.approx(camera.yaw_range, abs=0.02)


def test_overrides_are_keys_of_the_config() -> None:
    scene = fit_scene(around(4.0, 1.5, (0.3, -0.2, 0.0)))
    config = override(get_recipe("cars-demo"), scene.overrides())
    assert (config.rendering.near, config.rendering.far) == (scene.near, scene.far)
    assert config.camera.pivot == scene.pivot == (0.3, -0.2, 0.0)
    assert config.camera.yaw_range == pytest.approx(math.pi, abs=1e-3)


def test_a_known_size_bounds_the_object() -> None:
    scene = fit_scene(around(1.7, 0.6), object_side=1.0)
    assert scene.box_warp == 1.0 and scene.radius == pytest.approx(math.sqrt(3) / 2)


def test_strays_do_not_stretch_the_scene() -> None:
    labels = np.concatenate([around(1.7, 1.0254, count=400), around(90.0, 1.0254, count=2)])
    assert fit_scene(labels).far < 2.6


def test_parallel_axes_meet_nowhere() -> None:
    assert fit_scene(around(1.7, 1.0, count=1)) is None
    one = around(1.7, 1.0, count=1).repeat(5, axis=0)
    one[:, 3] += np.linspace(0, 1, 5)
    assert fit_scene(one) is None


def test_cameras_that_look_outwards_have_nothing_before_them() -> None:
    labels = around(1.7, 1.0)
    labels[:, [0, 2, 4, 6, 8, 10]] *= -1  # Turned by half a turn about their own y axis.
    assert fit_scene(labels).looking == 0.0


def test_a_pivot_far_from_the_origin_is_off_centre() -> None:
    assert fit_scene(around(1.7, 1.0, (5.0, 0.0, 0.0))).off_centre
    assert not fit_scene(around(2.7, 4.2647, (0.0, 0.0, 0.2))).off_centre
