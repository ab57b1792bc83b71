"""The meshes that a data set was rendered from, as points, for metrics of shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mimic3d.evaluation.shapes import surface_points
from mimic3d_platform.data.render.debian_cars import load_cars
from mimic3d_platform.data.render.meshes import load_folder
from mimic3d_platform.settings import get_settings
from mimic3d_platform.storage.digests import sha256

# In place of a folder: the cars that `mimic3d data render` fetches.
CARS = "cars"


@dataclass(frozen=True, eq=False)
class KnownShapes:
    """Points of the surfaces of meshes.

    Attributes:
        points: (meshes, n, 3) float32, centred, the longest side 1, as they are rendered.
        digest: SHA-256 of the points.
    """

    points: Tensor
    digest: str


def load_known_shapes(source: str) -> KnownShapes:
    """The shapes in a folder of meshes, or `CARS`.

    Raises:
        UserError: no such folder, no usable mesh, or the cars cannot be fetched.
    """
    meshes = load_cars(get_settings().home / "cache") if source == CARS else load_folder(Path(source))
    points = torch.stack([surface_points(mesh.vertices, mesh.faces) for mesh in meshes])
    return KnownShapes(points, sha256(points.numpy().tobytes()))
