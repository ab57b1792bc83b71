"""Camera labels of data sets, many at a time and in float64: checked, mirrored, cropped, turned, balanced.

A label is 25 numbers (mimic3d.cameras): a 4×4 camera-to-world matrix in OpenCV axes, then a 3×3 intrinsic
matrix in units of the image's size.
"""

from __future__ import annotations

import numpy as np

# How far a rotation stored in float32 may be from one, and how far a lens from what lenses are.
_RIGID = 1e-3
_FOCAL = (0.05, 100.0)
_CENTRE = (-1.0, 2.0)

# Balancing: bins of equal area on the sphere, and how often a rare one may be drawn beside the average.
_YAW_BINS, _PITCH_BINS = 36, 12
_MOST_WEIGHT = 10.0

# Rotations of the world that bring an axis to +y.
UPWARDS = {
    "y": np.eye(3),
    "-y": np.diag([1.0, -1.0, -1.0]),
    "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "-z": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "x": np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    "-x": np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
}


def label_faults(labels: np.ndarray) -> dict[int, str]:
    """What is wrong with which of (n, 25) labels: a rigid pose and sane intrinsics are asked for.

    Returns:
        a few words for each label that is not right, by its index.
    """
    labels = np.asarray(labels, dtype=np.float64)
    pose, lens = labels[:, :16].reshape(-1, 4, 4), labels[:, 16:].reshape(-1, 3, 3)
    faults: dict[int, str] = {}

    def note(wrong: np.ndarray, words: str) -> None:
        for index in np.flatnonzero(wrong).tolist():
            faults.setdefault(index, words)

    with np.errstate(all="ignore"):
        note(~np.isfinite(labels).all(axis=1), "a number that is not finite")
        note(np.abs(pose[:, 3] - [0, 0, 0, 1]).max(axis=1) > 1e-6, "a pose whose last row is not 0 0 0 1")
        rotation = pose[:, :3, :3]
        product = rotation.transpose(0, 2, 1) @ rotation
        note(np.abs(product - np.eye(3)).max(axis=(1, 2)) > _RIGID, "a pose that is no rotation")
        determinant = np.einsum("ni,ni->n", rotation[:, 0], np.cross(rotation[:, 1], rotation[:, 2]))
        note(determinant < 0, "a pose that mirrors (its determinant is -1)")
        note(np.abs(lens[:, 2] - [0, 0, 1]).max(axis=1) > 1e-6, "intrinsics whose last row is not 0 0 1")
        note(np.abs(lens[:, 1, 0]) > 1e-6, "intrinsics that are not upper triangular")
        focal = lens[:, [0, 1], [0, 1]]
        note(
            ((focal < _FOCAL[0]) | (focal > _FOCAL[1])).any(axis=1),
            f"a focal length that is not between {_FOCAL[0]:g} and {_FOCAL[1]:g} image sizes",
        )
        centre = lens[:, :2, 2]
        note(((centre < _CENTRE[0]) | (centre > _CENTRE[1])).any(axis=1), "a principal point far outside")
        note(np.abs(lens[:, 0, 1]) > focal[:, 0], "a skew beyond its focal length")
    return faults


def make_labels(poses: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(n, 25) labels of (n, 4, 4) poses and (n, 4) intrinsics fx, fy, cx, cy in image sizes."""
    count = len(poses)
    lens = np.zeros((count, 3, 3))
    lens[:, 0, 0], lens[:, 1, 1] = intrinsics[:, 0], intrinsics[:, 1]
    lens[:, 0, 2], lens[:, 1, 2], lens[:, 2, 2] = intrinsics[:, 2], intrinsics[:, 3], 1
    return np.concatenate([poses.reshape(count, 16), lens.reshape(count, 9)], axis=1)


def mirrored(labels: np.ndarray) -> np.ndarray:
    """Labels (n, 25) of the cameras that see the world mirrored in the plane x = 0 as a mirrored image.

    With F = diag(-1, 1, 1, 1) the pose is F·M·F, a rigid one: the camera's place and its own x axis are
    mirrored. A point at u in the image is then at 1 - u: cx becomes 1 - cx, and the skew changes sign.
    """
    flip = np.array([-1.0, 1, 1, 1])
    result = np.array(labels, dtype=np.float64)
    result[:, :16] = (result[:, :16].reshape(-1, 4, 4) * flip[:, None] * flip).reshape(-1, 16)
    result[:, 17] = -result[:, 17]
    result[:, 18] = 1 - result[:, 18]
    return result + 0.0  # -0 becomes 0


def cropped(label: np.ndarray, width: int, height: int, left: int, top: int, side: int) -> np.ndarray:
    """The label (25,) of the square of `side` pixels at (left, top) of an image of width×height."""
    result = np.array(label, dtype=np.float64)
    result[16:19] *= width / side
    result[19:22] *= height / side
    result[18] -= left / side
    result[21] -= top / side
    return result


def turned(labels: np.ndarray, up: str) -> np.ndarray:
    """Labels (n, 25) in a world turned so that its axis `up`, a key of `UPWARDS`, is +y."""
    result = np.array(labels, dtype=np.float64)
    poses = result[:, :16].reshape(-1, 4, 4)
    poses[:, :3] = UPWARDS[up] @ poses[:, :3]
    return result + 0.0


def yaw_pitch_radius(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where (n, 25) cameras stand around the origin: yaw and pitch in radians, and the radius; each (n,)."""
    position = np.asarray(labels, dtype=np.float64)[:, [3, 7, 11]]
    radius = np.linalg.norm(position, axis=1)
    pitch = np.arcsin(np.clip(position[:, 1] / np.maximum(radius, 1e-12), -1, 1))
    return np.arctan2(position[:, 0], position[:, 2]), pitch, radius


def balancing_weights(labels: np.ndarray) -> np.ndarray:
    """(n,) float32 of mean 1: how often to draw each camera so that directions come equally often.

    The sphere of directions is cut into 36 × 12 bins of equal area; a camera's weight is the inverse of its
    bin's count, at most ten times the average before all are scaled to mean 1.
    """
    yaw, pitch, _ = yaw_pitch_radius(labels)
    column = np.minimum(((yaw + np.pi) / (2 * np.pi) * _YAW_BINS).astype(int), _YAW_BINS - 1)
    row = np.minimum(((np.sin(pitch) + 1) / 2 * _PITCH_BINS).astype(int), _PITCH_BINS - 1)
    bins = row * _YAW_BINS + column
    counts = np.bincount(bins, minlength=_YAW_BINS * _PITCH_BINS)
    weights = np.minimum(len(bins) / (np.count_nonzero(counts) * counts[bins]), _MOST_WEIGHT)
    return (weights / weights.mean()).astype(np.float32)


def shortest_decimals(numbers: np.ndarray) -> np.ndarray:
    """float64: what the shortest decimals stand for that tell the nearest float32 of `numbers` from others.

    The float32 of 4.2647 widens to 4.264699935913086; this gives 4.2647 again.
    """
    import pyarrow as pa

    single = np.asarray(numbers, dtype=np.float32)
    decimals = pa.array(single.reshape(-1)).cast(pa.string())  # NumPy's own are ten times slower.
    return decimals.cast(pa.float64()).to_numpy().reshape(single.shape)


def lose_digits(labels: np.ndarray) -> bool:
    """Whether (n, 25) labels hold numbers that `shortest_decimals` does not give back."""
    parts = (labels[start : start + 4096] for start in range(0, len(labels), 4096))
    return any(not np.array_equal(shortest_decimals(part), part) for part in parts)
