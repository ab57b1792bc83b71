"""Cameras as the 25-number label that data sets, generators and discriminators share.

A label is a row-major 4x4 camera-to-world matrix in OpenCV axes (x right, y down, z forward), then a
row-major 3x3 intrinsic matrix in units of the image's size. The world's up is +y.
"""

from __future__ import annotations

import torch
from torch import Tensor

LABEL_SIZE = 25
FFHQ_FOCAL = 4.2647


def intrinsics(focal: float) -> Tensor:
    """The (3, 3) pinhole matrix with its principal point at the image's centre; `focal` in image widths."""
    return torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float64)


def look_at(position: Tensor, target: Tensor | None = None, *, focal: float = FFHQ_FOCAL) -> Tensor:
    """Labels of cameras at `position` that look at `target`, without roll.

    Args:
        position: (..., 3), world units; not vertically above or below the target.
        target: (..., 3) or (3,), the origin when None.
        focal: focal length in image widths.
    Returns:
        (..., 25) float32.
    """
    position = position.to(torch.float64)
    target = torch.zeros(3, dtype=torch.float64) if target is None else target.to(torch.float64)
    forward = torch.nn.functional.normalize(target - position, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand_as(forward)
    right = -torch.nn.functional.normalize(torch.linalg.cross(up, forward), dim=-1)
    down = torch.linalg.cross(forward, right)
    pose = torch.zeros(*position.shape[:-1], 4, 4, dtype=torch.float64)
    pose[..., :3, 0], pose[..., :3, 1], pose[..., :3, 2], pose[..., :3, 3] = right, down, forward, position
    pose[..., 3, 3] = 1
    return make_label(pose, intrinsics(focal))


def make_label(pose: Tensor, intrinsic: Tensor) -> Tensor:
    """Joins (..., 4, 4) camera-to-world poses and (..., 3, 3) intrinsics to (..., 25) float32 labels."""
    pose, intrinsic = pose.flatten(-2), intrinsic.flatten(-2).expand(*pose.shape[:-2], 9)
    return torch.cat([pose, intrinsic.to(pose)], dim=-1).to(torch.float32)


def split_label(camera: Tensor) -> tuple[Tensor, Tensor]:
    """The (..., 4, 4) pose and (..., 3, 3) intrinsics of (..., 25) labels."""
    return camera[..., :16].unflatten(-1, (4, 4)), camera[..., 16:25].unflatten(-1, (3, 3))


def on_sphere(yaw: Tensor, pitch: Tensor, radius: float | Tensor, pivot: Tensor | None = None) -> Tensor:
    """Positions around `pivot`, at `yaw` about +y (0 is +z) and elevation `pitch`.

    Args:
        yaw, pitch: (...), radians.
        radius: one for all positions, or (...); world units.
        pivot: (3,), the origin when None.
    Returns:
        (..., 3) float64.
    """
    yaw, pitch = yaw.to(torch.float64), pitch.to(torch.float64)
    direction = torch.stack(
        [yaw.sin() * pitch.cos(), pitch.sin().expand_as(yaw), yaw.cos() * pitch.cos()], dim=-1
    )
    position = torch.as_tensor(radius, dtype=torch.float64, device=yaw.device)[..., None] * direction
    return position if pivot is None else position + pivot.to(torch.float64)


def yaw_pitch_radius(camera: Tensor, pivot: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The position of cameras (..., 25) on spheres around `pivot`: yaw and pitch in radians, and radius."""
    position = split_label(camera)[0][..., :3, 3].to(torch.float64)
    position = position if pivot is None else position - pivot.to(torch.float64)
    radius = position.norm(dim=-1)
    return (
        torch.atan2(position[..., 0], position[..., 2]),
        torch.asin((position[..., 1] / radius).clamp(-1, 1)),
        radius,
    )


def pixel_grid(resolution: int, *, device: torch.device | str = "cpu") -> Tensor:
    """(resolution², 2) image coordinates (u, v) of all pixel centres in [0, 1], row by row."""
    centres = (torch.arange(resolution, device=device, dtype=torch.float32) + 0.5) / resolution
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([u, v], dim=-1).reshape(-1, 2)


def rays(camera: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
    """Rays through image points of a pinhole camera with skew.

    Args:
        camera: (N, 25) labels.
        uv: (M, 2) or (N, M, 2), image coordinates in [0, 1], u to the right and v down.
    Returns:
        origins and unit directions, each (N, M, 3), in world coordinates.
    """
    pose, intrinsic = split_label(camera)
    uv = uv.to(camera).expand(camera.shape[0], -1, 2)
    u, v = uv.unbind(-1)
    fx, fy = intrinsic[:, 0, 0, None], intrinsic[:, 1, 1, None]
    cx, cy, skew = intrinsic[:, 0, 2, None], intrinsic[:, 1, 2, None], intrinsic[:, 0, 1, None]
    x = (u - cx + cy * skew / fy - skew * v / fy) / fx
    y = (v - cy) / fy
    directions = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ pose[:, :3, :3].transpose(1, 2)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    return pose[:, None, :3, 3].expand_as(directions), directions


def project(camera: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Projects world points into the image: the inverse of `rays`.

    Args:
        camera: (N, 25) labels.
        points: (N, M, 3), world units.
    Returns:
        (N, M, 2) image coordinates (u, v), meaningless behind the camera, and (N, M) distances from the
        camera's centre, along the ray, negative behind the camera.
    """
    pose, intrinsic = split_label(camera)
    local = (points - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    projected = local @ intrinsic.transpose(1, 2)
    uv = projected[..., :2] / projected[..., 2:].where(projected[..., 2:].abs() > 1e-9, 1e-9)
    return uv, local.norm(dim=-1) * local[..., 2].sign()
