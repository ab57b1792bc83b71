"""The parts that readers of mesh files return, and the arithmetic of colours that they share."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

log = logging.getLogger(__name__)

# Exporters round a little above 1, and a bright light may be meant; colours that count to 255 are far above.
_BRIGHT = 2.0
# Of faces that no material, texture or vertex colours; sRGB.
NEUTRAL = np.full(3, 0.4)


@dataclass(frozen=True)
class MeshPart:
    """Triangles of one material.

    Attributes:
        material: its name; empty if it has none.
        vertices: (V, 3) float64.
        faces: (F, 3) int64, indices of `vertices`.
        colours: (F, 3) float64, sRGB in [0, 1].
        opacity: (F,) float64 in [0, 1]; 0 is invisible.
    """

    material: str
    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    opacity: np.ndarray


def counted_to_255(values: np.ndarray, what: str) -> np.ndarray:
    """Colours in [0, 1]: clipped, or divided by 255 where one is so large that they count to 255.

    Args:
        what: whose colours, for the warning.
    """
    most = np.max(values, where=np.isfinite(values), initial=0.0)
    if most > _BRIGHT:
        log.warning("%s go up to %g: they are taken as 0 to 255", what, most)
        return (values / 255).clip(0, 1)
    return values.clip(0, 1)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    value = np.asarray(srgb, dtype=np.float64)
    return np.where(value <= 0.04045, value / 12.92, ((np.maximum(value, 0) + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """sRGB values of linear light, both in [0, 1] (IEC 61966-2-1)."""
    value = np.asarray(linear, dtype=np.float64)
    return np.where(value <= 0.0031308, 12.92 * value, 1.055 * np.maximum(value, 0) ** (1 / 2.4) - 0.055)


# (7, 3): barycentric coordinates of the points of a face at which its texture is read.
SAMPLE_POINTS = np.array(
    [[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4], [2, 2, 0.1], [2, 0.1, 2], [0.1, 2, 2]], dtype=np.float64
)
SAMPLE_POINTS /= SAMPLE_POINTS.sum(axis=1, keepdims=True)


def at_sample_points(corners: np.ndarray) -> np.ndarray:
    """(F, 7, C): values at the sample points of faces, of values (F, 3, C) at their corners."""
    return np.einsum("sk,fkc->fsc", SAMPLE_POINTS, corners)
