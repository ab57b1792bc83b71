"""Rotation matrices of quaternions, in which COLMAP and glTF store rotations."""

from __future__ import annotations

import numpy as np


def rotation_matrix(w: float, x: float, y: float, z: float) -> np.ndarray:
    """(3, 3): the rotation of a unit quaternion with the real part `w`."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
