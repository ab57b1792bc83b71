"""What the page offers to download: camera paths, videos and meshes, as bytes of files."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor
from trimesh import Trimesh

from mimic3d.cameras import make_label, on_sphere, split_label, yaw_pitch_radius
from mimic3d.config import CameraConfig
from mimic3d.export.grid import MIN_PANEL
from mimic3d.export.mesh import extract_mesh, save_mesh
from mimic3d.export.orbits import orbit
from mimic3d.export.video import render_video
from mimic3d_platform.viewer.drawing import DrawingSession, Picture, with_samples
from mimic3d_platform.viewer.view_settings import Identity, ViewSettings

FRAMES = 48
VIDEO_PANEL = 4 * MIN_PANEL


def picture_png(picture: Picture) -> bytes:
    """A PNG of the picture at the size it was rendered, without what is around it."""
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(picture.panels, axis=1)).save(sink, format="PNG")
    return sink.getvalue()


def camera_path(keys: Sequence[tuple[float, ...]], settings: CameraConfig, frames: int = FRAMES) -> Tensor:
    """(frames, 25): a path through key cameras in turn; the model's own orbit when there are none.

    Between keys, yaw, pitch and radius around the model's pivot go evenly, and rotation and focal length
    with them.
    """
    if not keys:
        return orbit(settings, frames)
    cameras = torch.tensor(keys, dtype=torch.float64)
    if len(cameras) == 1:
        return cameras.float().expand(frames, -1)
    pivot = torch.tensor(settings.pivot, dtype=torch.float64)
    yaw, pitch, radius = yaw_pitch_radius(cameras, pivot)
    # The shorter way round from each key to the next.
    turns = (yaw.diff() + math.pi) % (2 * math.pi) - math.pi
    yaw = torch.cat([yaw[:1], yaw[:1] + turns.cumsum(0)])
    position = torch.linspace(0, len(cameras) - 1, frames, dtype=torch.float64)
    index = position.floor().long().clamp(max=len(cameras) - 2)
    share = position - index

    def between(values: Tensor) -> Tensor:
        return values[index].lerp(values[index + 1], share.view(-1, *[1] * (values.dim() - 1)))

    poses, intrinsics = split_label(cameras)
    frame_poses = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    frame_poses[:, :3, :3] = _rotations_between(poses[:, :3, :3], index, share)
    frame_poses[:, :3, 3] = on_sphere(between(yaw), between(pitch), between(radius), pivot)
    return make_label(frame_poses, between(intrinsics))


def camera_path_json(cameras: Tensor) -> bytes:
    """The file that `mimic3d render --cameras` takes."""
    return json.dumps({"labels": cameras.tolist()}).encode()


def video(
    session: DrawingSession,
    settings: ViewSettings,
    cameras: Tensor,
    *,
    follows: bool,
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """An MP4 of the settings' object and branches along `cameras` (T, 25).

    Args:
        follows: the generator is conditioned on each frame's camera, in place of the settings'.
    """
    model = session.model
    if follows:
        w = torch.stack([session.latent(_conditioned(settings.identity, c), model) for c in cameras])
    else:
        w = session.latent(settings.identity, model)
    branches = [branch for branch in settings.branches if branch in model.generator.branches]
    with tempfile.TemporaryDirectory(prefix="mimic3d-video-") as folder:
        path = render_video(
            Path(folder) / "video.mp4",
            with_samples(model.generator, settings.samples),
            w,
            cameras,
            branches=branches or None,
            depth=settings.channel == "depth",
            min_panel=VIDEO_PANEL,
            progress=progress,
        )
        return path.read_bytes()


def surface(session: DrawingSession, settings: ViewSettings, resolution: int) -> Trimesh:
    """The coloured surface of the settings' object.

    Raises:
        NoSurfaceError: the density nowhere crosses the level.
    """
    model = session.model
    branch = settings.branches[-1]
    if branch not in model.generator.branches:
        branch = model.generator.branches[-1]
    w = session.latent(settings.identity, model)
    return extract_mesh(model.generator, w, branch=branch, resolution=resolution)


def mesh_glb(mesh: Trimesh) -> bytes:
    """A mesh as a GLB file."""
    with tempfile.TemporaryDirectory(prefix="mimic3d-mesh-") as folder:
        return save_mesh(mesh, Path(folder) / "mesh.glb").read_bytes()


def _conditioned(identity: Identity, camera: Tensor) -> Identity:
    return replace(identity, conditioning=tuple(camera.tolist()))


def _rotations_between(keys: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """(T, 3, 3): `share` of the way from rotation `index` to the next, along the shortest turn."""
    path = Slerp(np.arange(len(keys)), Rotation.from_matrix(keys.numpy()))
    return torch.from_numpy(path((index + share).numpy()).as_matrix())
