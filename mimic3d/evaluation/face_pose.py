"""A face in an image, as a face model finds it, and its pose by the landmarks of an average face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from mimic3d.cameras import split_label

# Where the landmarks are on an average face, in the order of `Face.landmarks`: x to the right of the image
# of a face that looks at the camera, y down, z away from the camera; a face is some 0.45 wide.
AVERAGE_FACE = np.array(
    [
        [0.0, 0.0, 0.0],  # tip of the nose
        [0.0, 0.330, 0.065],  # chin
        [-0.225, -0.170, 0.135],  # outer corners of the eyes
        [0.225, -0.170, 0.135],
        [-0.150, 0.150, 0.125],  # corners of the mouth
        [0.150, 0.150, 0.125],
    ]
)


@dataclass(frozen=True, eq=False)
class Face:
    """A face in an image.

    Attributes:
        embedding: (E,), of faces of one person nearly parallel.
        landmarks: (6, 2) image coordinates (u, v) in [0, 1]: tip of the nose, chin, the outer corners of the
            eyes and of the mouth, those on the left of the image first.
    """

    embedding: Tensor
    landmarks: Tensor


FaceModel = Callable[[Tensor], Face | None]
"""Finds the face in an image (3, R, R) in [-1, 1]; None where there is none."""


def face_pose(landmarks: Tensor, camera: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Fits the average face to landmarks: a perspective-n-point problem, solved by least squares.

    Args:
        landmarks: as `Face.landmarks`.
        camera: (25,); only its intrinsics are used.
    Returns:
        The rotation (3, 3) of the face in the camera's axes, and the landmarks' (6,) distances from the
        camera's centre in units of `AVERAGE_FACE`.
    """
    intrinsic = split_label(camera.double())[1].numpy()
    homogeneous = np.concatenate([landmarks.double().numpy(), np.ones((len(AVERAGE_FACE), 1))], axis=1)
    seen = homogeneous @ np.linalg.inv(intrinsic).T
    seen = seen[:, :2] / seen[:, 2:]

    def local(parameters: np.ndarray) -> np.ndarray:
        return Rotation.from_rotvec(parameters[:3]).apply(AVERAGE_FACE) + parameters[3:]

    def error(parameters: np.ndarray) -> np.ndarray:
        points = local(parameters)
        return (points[:, :2] / points[:, 2:].clip(1e-3) - seen).ravel()

    spread = np.linalg.norm(seen - seen.mean(axis=0)) / np.linalg.norm(
        AVERAGE_FACE[:, :2] - AVERAGE_FACE[:, :2].mean(axis=0)
    )
    # Turned to either side, or not: from one side the solution may be the wrong one of two.
    starts = [np.array([0.0, yaw, 0.0, *seen[0] / spread, 1 / spread]) for yaw in (-0.5, 0.0, 0.5)]
    best = min((least_squares(error, start) for start in starts), key=lambda found: float(found.cost))
    return Rotation.from_rotvec(best.x[:3]).as_matrix(), np.linalg.norm(local(best.x), axis=1)
