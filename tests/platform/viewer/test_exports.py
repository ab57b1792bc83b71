"""Camera paths, screenshots and meshes that the page offers, and cameras and images of a data set."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from mimic3d.cameras import split_label, yaw_pitch_radius
from mimic3d.config.recipes import get_recipe
from mimic3d.export.camera_files import read_cameras
from mimic3d.export.orbits import at_yaw, orbit
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.viewer import exports
from mimic3d_platform.viewer.dataset_views import dataset_views
from mimic3d_platform.viewer.drawing import DrawingSession, Picture
from mimic3d_platform.viewer.view_settings import ViewSettings, label_numbers

Settings = Callable[..., ViewSettings]
CAMERA = get_recipe("cars-demo").camera


def keys_at(*yaw: float) -> list[tuple[float, ...]]:
    return [label_numbers(camera) for camera in at_yaw(CAMERA, torch.tensor(yaw, dtype=torch.float64))]


def test_a_path_goes_through_its_views_the_shorter_way_round(tmp_path: Path) -> None:
    keys = keys_at(3.0, -3.0, -2.0)
    path = exports.camera_path(keys, CAMERA, frames=5)
    torch.testing.assert_close(path[[0, 2, 4]], torch.tensor(keys), atol=1e-5, rtol=0)
    yaw, pitch, radius = yaw_pitch_radius(path)
    assert abs(float(yaw[1])) == pytest.approx(math.pi, abs=1e-4), "through ±π, not through the front"
    torch.testing.assert_close(pitch, torch.full_like(pitch, CAMERA.pitch), atol=1e-5, rtol=0)
    torch.testing.assert_close(radius, torch.full_like(radius, CAMERA.radius), atol=1e-5, rtol=0)
    # All of them look at the pivot.
    pose, _ = split_label(path.double())
    assert torch.linalg.cross(pose[:, :3, 2], pose[:, :3, 3]).abs().max() < 1e-4
    file = tmp_path / "cameras.json"
    file.write_bytes(exports.camera_path_json(path))
    torch.testing.assert_close(read_cameras(file, CAMERA), path)


def test_a_path_without_views_is_the_models_orbit_and_of_one_view_stands_still() -> None:
    assert torch.equal(exports.camera_path([], CAMERA, 6), orbit(CAMERA, 6))
    (key,) = keys_at(0.5)
    assert torch.equal(exports.camera_path([key], CAMERA, 3), torch.tensor([key] * 3))


def test_a_screenshot_holds_the_pictures_without_what_is_around_them(settings: Settings) -> None:
    panels = tuple(np.full((8, 8, 3), grey, np.uint8) for grey in (10, 200))
    picture = Picture(np.zeros((20, 40, 3), np.uint8), panels, settings(), 8, 16, False, 0.1)
    found = np.asarray(Image.open(io.BytesIO(exports.picture_png(picture))))
    assert np.array_equal(found, np.concatenate(panels, axis=1))


def test_a_mesh_is_that_of_the_object_on_the_page(session: DrawingSession, settings: Settings) -> None:
    mesh = exports.surface(session, settings(seed=2), resolution=24)
    box = session.model.config.rendering.box_warp
    assert len(mesh.faces) > 200 and np.abs(mesh.bounds).max() <= box / 2 + 1e-6
    again = trimesh.load(io.BytesIO(exports.mesh_glb(mesh)), file_type="glb", force="mesh")
    assert len(again.faces) == len(mesh.faces)


@pytest.mark.parametrize("follows", [False, True])
def test_a_video_has_a_frame_for_each_camera(
    session: DrawingSession, settings: Settings, tmp_path: Path, follows: bool
) -> None:
    import imageio_ffmpeg

    frames: list[tuple[int, int]] = []
    data = exports.video(
        session,
        settings(shown="2D branch", samples=8),
        exports.camera_path([], session.model.config.camera, frames=2),
        follows=follows,
        progress=lambda *counts: frames.append(counts),
    )
    (tmp_path / "video.mp4").write_bytes(data)
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "video.mp4"))[0] == 2
    assert frames == [(1, 2), (2, 2)]


def test_views_of_a_data_set_are_spread_over_its_rows(tmp_path: Path) -> None:
    cameras = keys_at(*(0.1 * row for row in range(9)))
    uri = str(tmp_path / "set")
    with DatasetWriter(uri, 8, {"tool": "test"}, columns=("image", "camera"), shard_bytes=300) as writer:
        for row, camera in enumerate(cameras):
            sink = io.BytesIO()
            Image.new("RGB", (8, 8), (row * 20, 0, 0)).save(sink, "PNG")
            writer.write({"image": sink.getvalue(), "camera": np.array(camera, np.float32)})
    views = dataset_views(uri, count=3)
    assert [view.row for view in views] == [0, 4, 8]
    for view in views:
        assert view.image.shape == (8, 8, 3) and (view.image[..., 0] == view.row * 20).all()
        np.testing.assert_allclose(view.camera, cameras[view.row], atol=1e-6)
