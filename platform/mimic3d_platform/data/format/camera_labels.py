"""Checks and transformations of camera labels, for many labels at a time, in float64.

A label is 25 numbers (`mimic3d.cameras`): a 4×4 camera-to-world matrix in OpenCV axes, then a 3×3 intrinsic
matrix in units of the image size, both row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

# Tolerance of a rotation matrix stored in float32, and the limits of plausible intrinsics.
_RIGID = 1e-3
_FOCAL = (0.05, 100.0)
_CENTRE = (-1.0, 2.0)

# Rotations of the world that map an axis to +y.
UPWARDS = {
    "y": np.eye(3),
    "-y": np.diag([1.0, -1.0, -1.0]),
    "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "-z": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "x": np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    "-x": np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
}


def label_faults(labels: np.ndarray) -> dict[int, str]:
    """Faults of (n, 25) labels: poses that are not rigid, intrinsics that are not plausible.

    Returns:
        a description of the first fault of each faulty label, by the label's index.
    """
    labels = np.asarray(labels, dtype=np.float64)
    pose, lens = labels[:, :16].reshape(-1, 4, 4), labels[:, 16:].reshape(-1, 3, 3)
    faults: dict[int, str] = {}

    def note(faulty: np.ndarray, fault: str) -> None:
        for index in np.flatnonzero(faulty).tolist():
            faults.setdefault(index, fault)

    with np.errstate(all="ignore"):
        note(~np.isfinite(labels).all(axis=1), "a number that is not finite")
        last = np.abs(pose[:, 3] - np.array([0, 0, 0, 1])).max(axis=1)
        note(last > 1e-6, "a pose whose last row is not 0 0 0 1")
        rotation = pose[:, :3, :3]
        product = rotation.transpose(0, 2, 1) @ rotation
        note(np.abs(product - np.eye(3)).max(axis=(1, 2)) > _RIGID, "a pose that is not a rotation")
        determinant = np.einsum("ni,ni->n", rotation[:, 0], np.cross(rotation[:, 1], rotation[:, 2]))
        note(determinant < 0, "a pose that mirrors (its determinant is -1)")
        last = np.abs(lens[:, 2] - np.array([0, 0, 1])).max(axis=1)
        note(last > 1e-6, "intrinsics whose last row is not 0 0 1")
        note(np.abs(lens[:, 1, 0]) > 1e-6, "intrinsics that are not upper triangular")
        focal = lens[:, [0, 1], [0, 1]]
        outside = (focal < _FOCAL[0]) | (focal > _FOCAL[1])
        note(
            outside[:, 0] | outside[:, 1],
            f"a focal length that is not between {_FOCAL[0]:g} and {_FOCAL[1]:g} image sizes",
        )
        centre = lens[:, :2, 2]
        outside = (centre < _CENTRE[0]) | (centre > _CENTRE[1])
        note(
            outside[:, 0] | outside[:, 1],
            f"a principal point that is not between {_CENTRE[0]:g} and {_CENTRE[1]:g} image sizes",
        )
        note(np.abs(lens[:, 0, 1]) > focal[:, 0], "a skew larger than its focal length")
    return faults


def make_labels(poses: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(n, 25) labels of (n, 4, 4) poses and (n, 4) intrinsics fx, fy, cx, cy in image sizes."""
    count = len(poses)
    lens = np.zeros((count, 3, 3))
    lens[:, 0, 0], lens[:, 1, 1] = intrinsics[:, 0], intrinsics[:, 1]
    lens[:, 0, 2], lens[:, 1, 2], lens[:, 2, 2] = intrinsics[:, 2], intrinsics[:, 3], 1
    return np.concatenate([poses.reshape(count, 16), lens.reshape(count, 9)], axis=1)


def mirrored(labels: np.ndarray) -> np.ndarray:
    """Labels (n, 25) of the mirrored images: the cameras that see the world mirrored in the plane x = 0.

    With F = diag(-1, 1, 1, 1) the pose becomes F·M·F, which is rigid: the camera's position and its own x
    axis are mirrored. A point at u in the image moves to 1 - u: cx becomes 1 - cx, and the skew changes sign.
    """
    flip = np.array([-1.0, 1, 1, 1])
    result = np.array(labels, dtype=np.float64)
    result[:, :16] = (result[:, :16].reshape(-1, 4, 4) * flip[:, None] * flip).reshape(-1, 16)
    result[:, 17] = -result[:, 17]
    result[:, 18] = 1 - result[:, 18]
    return result + 0.0  # -0 becomes 0


def cropped(label: np.ndarray, width: int, height: int, left: int, top: int, side: int) -> np.ndarray:
    """The label (25,) of a crop: the square of `side` pixels at (left, top) of an image of width×height."""
    result = np.array(label, dtype=np.float64)
    result[16:19] *= width / side
    result[19:22] *= height / side
    result[18] -= left / side
    result[21] -= top / side
    return result


def rotated(labels: np.ndarray, up: str) -> np.ndarray:
    """Labels (n, 25) in a world rotated so that its axis `up`, a key of `UPWARDS`, becomes +y."""
    result = np.array(labels, dtype=np.float64)
    poses = result[:, :16].reshape(-1, 4, 4)
    poses[:, :3] = UPWARDS[up] @ poses[:, :3]
    return result + 0.0


def placed(labels: np.ndarray, centre: Sequence[float], scale: float) -> np.ndarray:
    """Labels (n, 25) in a world whose point `centre` becomes the origin, then scaled by `scale`."""
    result = np.array(labels, dtype=np.float64)
    for axis, column in enumerate((3, 7, 11)):
        result[:, column] = (result[:, column] - centre[axis]) * scale
    return result + 0.0


def yaw_pitch_radius(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of (n, 25) cameras around the origin: yaw and pitch in radians, and radius; each (n,)."""
    position = np.asarray(labels, dtype=np.float64)[:, [3, 7, 11]]
    radius = np.linalg.norm(position, axis=1)
    pitch = np.arcsin(np.clip(position[:, 1] / np.maximum(radius, 1e-12), -1, 1))
    return np.arctan2(position[:, 0], position[:, 2]), pitch, radius


def shortest_decimals(numbers: np.ndarray) -> np.ndarray:
    """float64: for each number, the shortest decimal that rounds to the same float32.

    The float32 of 4.2647 widens to 4.264699935913086; this function returns 4.2647.
    """
    single = np.asarray(numbers, dtype=np.float32)
    decimals = pa.array(single.reshape(-1)).cast(pa.string())  # NumPy's own conversion is ten times slower.
    return decimals.cast(pa.float64()).to_numpy().reshape(single.shape)


def lose_digits(labels: np.ndarray) -> bool:
    """Whether (n, 25) labels hold numbers that `shortest_decimals` does not return unchanged."""
    parts = (labels[start : start + 4096] for start in range(0, len(labels), 4096))
    return any(not np.array_equal(shortest_decimals(part), part) for part in parts)
