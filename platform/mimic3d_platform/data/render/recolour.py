"""New colours for a mesh's body paint, and a little jitter for the rest."""

from __future__ import annotations

import colorsys

import numpy as np

from mimic3d import randomness
from mimic3d_platform.data.render.meshes import Mesh

_GOLDEN = 0.6180339887498949
_NEUTRAL_SHARE = 0.1
# Hues at equal steps, red to red: even steps of the colour circle would make a third of all cars purple.
_HUES = (0.0, 0.05, 0.09, 0.15, 0.27, 0.38, 0.49, 0.55, 0.60, 0.66, 0.76, 0.92, 1.0)
_LUMA = np.array([0.299, 0.587, 0.114])


def recolour(mesh: Mesh, seed: int, colouring: int) -> np.ndarray:
    """(F, 3) sRGB face colours of one colouring of a mesh: a function of (seed, mesh, colouring).

    The first paint's hues walk round the circle by the golden ratio, so that few colourings already differ;
    one in ten is a grey. A second paint is a neutral. What a paint's faces differ in lightness is kept.
    """
    draw = randomness.uniform(seed, f"colouring {mesh.identifier}", colouring, size=8)
    start = randomness.uniform(seed, f"hue {mesh.identifier}", size=1)[0]
    first = _paint((start + colouring * _GOLDEN) % 1.0, *draw[:3])
    second = np.full(3, (0.2, 0.55, 0.9)[int(draw[3] * 3)])
    colours = _jitter(mesh, seed, colouring)
    for group, paint in ((1, first), (2, second)):
        faces = mesh.paint == group
        if faces.any():
            light = mesh.colours[faces] @ _LUMA
            shade = np.clip(light / max(light.mean(), 1e-6), 0.5, 1.3)
            colours[faces] = paint * shade[:, None]
    return np.clip(colours, 0.0, 1.0)


def _paint(around: float, saturation: float, value: float, neutral: float) -> np.ndarray:
    if neutral < _NEUTRAL_SHARE:
        return np.full(3, 0.3 + 0.6 * value)
    hue = float(np.interp(around, np.linspace(0, 1, len(_HUES)), _HUES))
    return np.array(colorsys.hsv_to_rgb(hue, 0.75 + 0.25 * saturation, 0.7 + 0.3 * value))


def _jitter(mesh: Mesh, seed: int, colouring: int) -> np.ndarray:
    """The mesh's colours, each material a little lighter or darker."""
    count = int(mesh.material.max()) + 1
    draw = randomness.uniform(seed, f"jitter {mesh.identifier}", colouring, size=count)
    return mesh.colours * (0.85 + 0.3 * draw)[mesh.material, None]
