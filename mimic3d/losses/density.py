"""Smoothness of the density field (EG3D's supplement)."""

from __future__ import annotations

import torch
from torch import Tensor

from mimic3d.networks.backbone import TriPlanes
from mimic3d.networks.generator import Generator
from mimic3d.sample_noise import normal_rows, uniform_rows


def density_smoothness(generator: Generator, planes: TriPlanes, count: int, distance: float) -> Tensor:
    """Mean |density(p) - density(p + d)| over points p uniform in [-1, 1]³ and steps d of N(0, distance²).

    Args:
        planes: with detail, the 3D branch's field is smoothed; without, the 2D branch's.
        count: points per sample.
    """
    shape, device = (planes.coarse.shape[0], count, 3), planes.coarse.device
    points = uniform_rows(shape, device) * 2 - 1
    moved = points + normal_rows(shape, device) * distance
    density, _ = generator.field(planes, torch.cat([points, moved], dim=1), outputs=0)
    here, there = density.split(count, dim=1)
    return (here - there).abs().mean()
