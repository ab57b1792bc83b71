"""The cameras that pictures and videos are rendered from: the front, turntables and orbits."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import CameraConfig


def around_pivot(
    settings: CameraConfig,
    yaw: float = 0.0,
    pitch: float | None = None,
    radius: float | None = None,
    focal: float | None = None,
) -> Tensor:
    """(1, 25): the label of a camera that looks at the settings' pivot.

    Args:
        yaw, pitch: radians; the pitch is the settings' when None.
        radius: distance from the pivot in world units; the settings' when None.
        focal: focal length in image widths; the settings' when None.
    """
    settings = replace(
        settings,
        pitch=settings.pitch if pitch is None else pitch,
        radius=settings.radius if radius is None else radius,
        focal=settings.focal if focal is None else focal,
    )
    return at_yaw(settings, torch.tensor([yaw], dtype=torch.float64))


def at_yaw(settings: CameraConfig, yaw: Tensor) -> Tensor:
    """(N, 25) labels at `yaw` (N,), radians, at the settings' elevation, looking at their pivot."""
    pivot = torch.tensor(settings.pivot, dtype=torch.float64)
    pitch = torch.full_like(yaw, settings.pitch)
    return look_at(on_sphere(yaw, pitch, settings.radius, pivot), pivot, focal=settings.focal)


def front(settings: CameraConfig) -> Tensor:
    """(1, 25): the front camera, the default camera that a generator is conditioned on."""
    return at_yaw(settings, torch.zeros(1, dtype=torch.float64))


def turntable(settings: CameraConfig, count: int) -> Tensor:
    """(count, 25): cameras evenly spaced over the yaw range, or over the full circle if it covers that."""
    yaw_range = settings.yaw_range
    steps = torch.arange(count, dtype=torch.float64)
    if yaw_range >= math.pi:
        return at_yaw(settings, steps * (2 * math.pi / count) + math.pi / 6)
    return at_yaw(settings, -yaw_range + steps * (2 * yaw_range / max(count - 1, 1)))


def orbit(settings: CameraConfig, count: int) -> Tensor:
    """(count, 25): a closed path for a video: a full circle, or back and forth within the yaw range."""
    if settings.yaw_range >= math.pi:
        return turntable(settings, count)
    phase = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return at_yaw(settings, settings.yaw_range * phase.sin())
