"""The cameras that pictures, videos and turntables are taken from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import CameraConfig


def at_yaw(settings: CameraConfig, yaw: Tensor) -> Tensor:
    """(N, 25) labels at `yaw` (N,), radians, at the settings' elevation, looking at their pivot."""
    pivot = torch.tensor(settings.pivot, dtype=torch.float64)
    pitch = torch.full_like(yaw, settings.pitch)
    return look_at(on_sphere(yaw, pitch, settings.radius, pivot), pivot, focal=settings.focal)


def front(settings: CameraConfig) -> Tensor:
    """(1, 25): the camera that a generator is conditioned on when nothing else is asked for."""
    return at_yaw(settings, torch.zeros(1, dtype=torch.float64))


def turntable(settings: CameraConfig, count: int) -> Tensor:
    """(count, 25): views from one end of the yaw range to the other, or once round if it is a full turn."""
    reach = settings.yaw_range
    steps = torch.arange(count, dtype=torch.float64)
    if reach >= math.pi:
        return at_yaw(settings, steps * (2 * math.pi / count) + math.pi / 6)
    return at_yaw(settings, -reach + steps * (2 * reach / max(count - 1, 1)))


def orbit(settings: CameraConfig, count: int) -> Tensor:
    """(count, 25): a closed path for a video: once round, or to and fro within the yaw range."""
    if settings.yaw_range >= math.pi:
        return turntable(settings, count)
    phase = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return at_yaw(settings, settings.yaw_range * phase.sin())
