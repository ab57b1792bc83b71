"""The scene of a data set, estimated from its cameras: the point that they look at, near, far, and the box.

Training needs `rendering.near`, `far` and `box_warp` that enclose the objects. No label says how large an
object is; its photographer has fitted it into the image. So the object is taken for the largest sphere about
the cameras' common point that an image shows whole: its radius at distance d is d · sin(atan(1 / 2f)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# Optical axes within so small an angle of each other (radians) meet nowhere in particular.
_PARALLEL = 0.02
# Shares of the cameras that are not counted: a few bad poses must not stretch the scene.
_STRAY = 0.01
_DIGITS = 3


@dataclass(frozen=True)
class SceneFit:
    """A scene as its cameras show it, in the units of their labels.

    Attributes:
        pivot: the point nearest to all optical axes (least squares).
        distances: of the nearest and the farthest camera from the pivot, strays left out.
        radius: of the object, a sphere about the pivot.
        box_side: of the smallest cube about the origin that holds the object.
        focal: the median focal length, in image widths.
        pitch: the median elevation of the cameras above the pivot, radians.
        yaw_range: the largest angle of a camera to either side of +z about the pivot, radians; pi if they go
            all the way round.
        looking: the share of the cameras that have the pivot before them.
    """

    pivot: tuple[float, float, float]
    distances: tuple[float, float]
    radius: float
    box_side: float
    focal: float
    pitch: float
    yaw_range: float
    looking: float

    @cached_property
    def near(self) -> float:
        """The depth before the object, as seen from the nearest camera; positive."""
        nearest = self.distances[0]
        return _rounded(max(nearest - self.radius, 0.05 * nearest), math.floor)

    @cached_property
    def far(self) -> float:
        """The depth behind the object, as seen from the farthest camera."""
        return _rounded(self.distances[1] + self.radius, math.ceil)

    @cached_property
    def box_warp(self) -> float:
        """The side of the box about the origin that holds the object."""
        return _rounded(self.box_side, math.ceil)

    @property
    def off_centre(self) -> bool:
        """True if a box about the origin would hold more empty space than object."""
        return max(map(abs, self.pivot)) > 2 * self.radius

    def overrides(self) -> dict[str, float | tuple[float, float, float]]:
        """The keys of a config that suit the scene, by dotted path."""
        return {
            "rendering.near": self.near,
            "rendering.far": self.far,
            "rendering.box_warp": self.box_warp,
            "camera.radius": _rounded(sum(self.distances) / 2),
            "camera.focal": self.focal,
            "camera.pivot": self.pivot,
            "camera.pitch": self.pitch,
            "camera.yaw_range": self.yaw_range,
        }


def fit_scene(cameras: np.ndarray, object_side: float | None = None) -> SceneFit | None:
    """The scene that (n, 25) camera labels show; None if their optical axes are parallel and meet nowhere.

    Args:
        object_side: the side of a cube about the origin that is known to hold the objects.
    """
    labels = np.asarray(cameras, dtype=np.float64)
    labels = labels[np.isfinite(labels).all(axis=1)]
    position, forward = labels[:, [3, 7, 11]], labels[:, [2, 6, 10]]
    focal = np.sqrt(np.abs(labels[:, 16] * labels[:, 20]))
    pivot = _meeting_point(position, forward)
    if pivot is None:
        return None
    offset = position - pivot
    distance = np.linalg.norm(offset, axis=1)
    radius = float(np.median(distance / (2 * np.sqrt(focal**2 + 0.25))))
    box_side = 2 * (radius + float(np.abs(pivot).max()))
    if object_side is not None:
        radius, box_side = min(radius, object_side * math.sqrt(3) / 2), min(box_side, object_side)
    nearest, farthest = np.quantile(distance, [_STRAY, 1 - _STRAY]).tolist()
    elevation = np.arcsin(np.clip(offset[:, 1] / np.maximum(distance, 1e-12), -1, 1))
    yaw = float(np.quantile(np.abs(np.arctan2(offset[:, 0], offset[:, 2])), 1 - _STRAY))
    # A point nearer the origin than a hundredth of the object is the origin, up to rounded labels.
    pivot = np.where(np.abs(pivot) < radius / 100, 0.0, pivot)
    return SceneFit(
        pivot=(_rounded(pivot[0]), _rounded(pivot[1]), _rounded(pivot[2])),
        distances=(nearest, farthest),
        radius=radius,
        box_side=box_side,
        focal=round(float(np.median(focal)), 4),
        pitch=round(float(np.median(elevation)), 2),
        yaw_range=round(math.pi, 4) if yaw > 0.75 * math.pi else max(round(yaw, 2), 0.01),
        looking=float(np.mean(np.einsum("ni,ni->n", -offset, forward) > 0)),
    )


def _meeting_point(position: np.ndarray, forward: np.ndarray) -> np.ndarray | None:
    """The point p that minimises the squared distances to the axes, sum |(I - f·fᵀ)(p - c)|²."""
    if not len(position):
        return None
    forward = forward / np.maximum(np.linalg.norm(forward, axis=1, keepdims=True), 1e-12)
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    system = across.mean(axis=0)
    if np.linalg.eigvalsh(system)[0] < _PARALLEL**2:
        return None
    return np.linalg.solve(system, np.einsum("nij,nj->i", across, position) / len(position))


def _rounded(value: float, to_whole: Callable[[float], int] = round) -> float:
    """`value` with `_DIGITS` significant digits, rounded by `to_whole` such as `math.ceil`."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - _DIGITS)
    # The second rounding removes what the multiplication leaves behind the last digit.
    return float(f"{to_whole(round(value / step, 6)) * step:.{_DIGITS}g}")
