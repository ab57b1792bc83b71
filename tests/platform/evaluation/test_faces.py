"""Metrics of faces by dlib, on views of a head: a photograph on an ellipsoid that is traced by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import skimage.data
import torch
from data_samples import png
from scipy.spatial.transform import Rotation
from torch.nn.functional import grid_sample, interpolate

from mimic3d.cameras import look_at, on_sphere, pixel_grid, rays
from mimic3d.evaluation.face_pose import AVERAGE_FACE, face_pose
from mimic3d.evaluation.faces import FaceDepth, FaceIdentity, FaceMetric, FacePose, FaceShare
from mimic3d.evaluation.metric import Views
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import face_model
from mimic3d_platform.evaluation.evaluate import Options, measure
from mimic3d_platform.evaluation.face_model import load_face_model
from mimic3d_platform.evaluation.subjects import open_subject

torch.set_num_threads(1)
SIDE = 128
# The head's half-axes, and the part of the photograph that lies on its front: middle and half size, pixels.
AXES = torch.tensor([0.36, 0.48, 0.42])
MIDDLE, HALF = (222.0, 118.0), 92.0


@pytest.fixture(scope="module")
def head() -> Views:
    """Views of the head from an orbit of ±0.3 rad."""
    yaw = torch.linspace(-0.3, 0.3, 5, dtype=torch.float64)
    cameras = look_at(on_sphere(yaw, torch.zeros_like(yaw), 2.7), focal=2.5)
    origins, directions = rays(cameras, pixel_grid(SIDE))
    # The ellipsoid is the unit sphere of coordinates divided by its half-axes.
    o, d = origins / AXES, directions / AXES
    a, b, c = d.square().sum(-1), (o * d).sum(-1), o.square().sum(-1) - 1
    inside = b.square() - a * c
    depth = torch.where(inside > 0, (-b - inside.clamp(min=0).sqrt()) / a, 0)
    points = origins + depth[..., None] * directions
    photograph = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 127.5 - 1
    across = MIDDLE[0] + points[..., 0] / AXES[1] * HALF
    down = MIDDLE[1] - points[..., 1] / AXES[1] * HALF
    grid = torch.stack([across, down], dim=-1) / (photograph.shape[-1] / 2) - 1
    colour = grid_sample(
        photograph[None].expand(len(cameras), -1, -1, -1), grid[:, :, None], align_corners=False
    )[..., 0]
    square = (len(cameras), -1, SIDE, SIDE)
    images = torch.where(inside[:, None] > 0, colour, torch.ones(1)).view(square)
    opacity = (inside > 0).float().view(square)
    return Views(images, cameras, 1.0, depth.view(square), opacity, True, face_model=load_face_model())


def value(metric: FaceMetric, views: Views) -> float:
    return metric.value(torch.tensor(metric.part(views), dtype=torch.float64))


def test_a_true_head_is_found_recognised_and_turns_as_the_cameras_do(head: Views) -> None:
    assert value(FaceShare(), head) == 1
    assert value(FaceIdentity(), head) > 0.98
    assert value(FacePose(), head) < 8
    assert value(FaceDepth(), head) < 1


def test_wrong_cameras_raise_the_pose_error_with_their_error(head: Views) -> None:
    def moved(radians: float) -> Views:
        position = on_sphere(torch.linspace(-0.3, 0.3, 5) * (1 + radians / 0.3), torch.zeros(5), 2.7)
        return replace(head, cameras=look_at(position, focal=2.5))

    found = [value(FacePose(), moved(wrong)) for wrong in (0, 0.2, 0.6)]
    assert found == sorted(found) and found[-1] > found[0] + 10


def test_a_face_that_changes_with_the_view_is_recognised_less(head: Views) -> None:
    taller = interpolate(head.images[3:], (SIDE * 3 // 2, SIDE), mode="bilinear")[:, :, 32:-32]
    changing = replace(head, images=torch.cat([head.images[:3], taller]))
    assert value(FaceShare(), changing) == 1
    assert value(FaceIdentity(), changing) < value(FaceIdentity(), head) - 0.01


def test_flat_and_hollow_faces_raise_the_depth_error(head: Views) -> None:
    assert head.depth is not None
    flat = replace(head, depth=torch.full_like(head.depth, 2.7))
    hollow = replace(head, depth=5.4 - head.depth)
    found = [value(FaceDepth(), views) for views in (head, flat, hollow)]
    assert found == sorted(found) and found[1] > found[0] + 0.2 and found[2] > 2


def test_the_pose_of_the_average_face_is_found_from_any_side() -> None:
    camera = look_at(torch.tensor([0.0, 0.0, 2.7]), focal=2.5)
    for yaw, pitch in ((0.0, 0.0), (0.6, 0.1), (-0.6, -0.2)):
        rotation = Rotation.from_euler("yx", [yaw, pitch]).as_matrix()
        points = torch.from_numpy(AVERAGE_FACE @ rotation.T + [0.1, -0.05, 2.5])
        landmarks = points[:, :2] / points[:, 2:] * 2.5 + 0.5
        found, distances = face_pose(landmarks, camera)
        assert found == pytest.approx(rotation, abs=1e-4)
        assert distances == pytest.approx(points.norm(dim=1).numpy(), abs=1e-3)


def test_images_without_a_face_have_a_share_of_none_and_no_other_metric(head: Views) -> None:
    noise = torch.randn(head.images.shape, generator=torch.Generator().manual_seed(0))
    nobody = replace(head, images=noise.clamp(-1, 1))
    assert value(FaceShare(), nobody) == 0
    for metric in (FaceIdentity(), FacePose(), FaceDepth()):
        with pytest.raises(ValueError, match="too few views"):
            metric.estimate(torch.tensor([metric.part(nobody)], dtype=torch.float64), 0)


def test_images_on_disk_are_measured_and_depth_is_left_out_with_its_reason(
    head: Views, tmp_path: Path
) -> None:
    uri = str(tmp_path / "heads")
    with DatasetWriter(uri, SIDE, {"tool": "test"}, columns=("image", "camera", "identity")) as writer:
        for image, camera in zip(head.images, head.cameras, strict=True):
            pixels = ((image.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
            writer.write({"image": png(pixels), "camera": camera.numpy(), "identity": "astronaut"})
    options = Options(images=5, objects=1, views=5, fields=False, faces=True, here=True)
    subject, data = open_subject(uri, uri, 0)
    found = measure(subject, data, options, cache_uri=str(tmp_path / "cache"))
    assert found.estimates["face_share_dlib/images"].value == 1
    assert found.estimates["face_pose_dlib/images"].value < 8
    assert found.left_out["face_depth_dlib/images"] == f"{uri} has no depth"
    without = measure(subject, data, replace(options, faces=False), cache_uri=str(tmp_path / "cache"))
    assert not any("face" in name for name in (*without.estimates, *without.left_out))


def test_a_missing_package_and_a_changed_file_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    load_face_model.cache_clear()
    monkeypatch.setitem(face_model.SHA256, face_model.LANDMARKS, "0" * 64)
    with pytest.raises(UserError, match="is not that of face-recognition-models"):
        load_face_model()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mimic3d\[faces\]'"):
        load_face_model()
