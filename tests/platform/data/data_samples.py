"""Samples for tests of data sets: a small car, and images whose pixels encode their row number."""

import io

import numpy as np
import torch
from PIL import Image

from mimic3d import cameras as geometry

OBJ = """mtllib car.mtl
v -1 -0.5 -2
v 1 -0.5 -2
v 1 0.5 -2
v -1 0.5 -2
v -1 -0.5 2
v 1 -0.5 2
v 1 0.5 2
v -1 0.5 2
usemtl Body
f 1 4 3 2
f 5 6 7 8
f 1 5 8 4
f 2 3 7 6
usemtl Window
f 4 8 7 3
usemtl Tyre
f 1 2 6 5
"""
MTL = """newmtl Body
Kd 0.8 0.1 0.1
newmtl Window
Kd 0.9 0.9 0.9
d 0.3
newmtl Tyre
Kd 0.02 0.02 0.02
"""


def picture(row: int, side: int) -> np.ndarray:
    """(side, side, 3) uint8: the first two channels encode the row number."""
    return np.broadcast_to(np.array([row % 256, row // 256, 7], np.uint8), (side, side, 3))


def row_numbers(images: torch.Tensor) -> list[int]:
    """The inverse of `picture` for a batch of (n, 3, R, R)."""
    return (images[:, 0, 0, 0].int() + 256 * images[:, 1, 0, 0].int()).tolist()


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG")
    return sink.getvalue()


def camera_of(row: int) -> torch.Tensor:
    """(25,): looks at the origin from a yaw that depends on the row."""
    yaw, pitch = torch.tensor(0.001 * row), torch.tensor(0.3)
    return geometry.look_at(geometry.on_sphere(yaw, pitch, 1.7), focal=1.0254)
