"""New colours for a mesh: other body paint, and slightly varied brightness of its other materials."""

from __future__ import annotations

import colorsys

import numpy as np

from mimic3d import randomness
from mimic3d_platform.data.render.meshes import Mesh

_GOLDEN_RATIO = 0.6180339887498949
_GREY_SHARE = 0.1
# Hues at equal steps around the circle, from red to red. Equal steps of HSV hue would make a third of all
# cars purple.
_HUES = (0.0, 0.05, 0.09, 0.15, 0.27, 0.38, 0.49, 0.55, 0.60, 0.66, 0.76, 0.92, 1.0)
_LUMA = np.array([0.299, 0.587, 0.114])


def recolour(mesh: Mesh, seed: int, colouring: int) -> np.ndarray:
    """(F, 3) sRGB face colours of one colouring of a mesh: a function of (seed, mesh, colouring).

    The hue of the first paint advances by the golden ratio from one colouring to the next, so that even a few
    colourings differ clearly; one in ten is grey. A second paint is dark, medium or light grey. Differences
    in lightness between the faces of a paint are kept.
    """
    random = randomness.uniform(seed, f"colouring {mesh.identifier}", colouring, size=8)
    first_hue = randomness.uniform(seed, f"hue {mesh.identifier}", size=1)[0]
    first = _paint((first_hue + colouring * _GOLDEN_RATIO) % 1.0, *random[:3])
    second = np.full(3, (0.2, 0.55, 0.9)[int(random[3] * 3)])
    colours = _jitter(mesh, seed, colouring)
    for group, paint in ((1, first), (2, second)):
        faces = mesh.paint == group
        if faces.any():
            light = mesh.colours[faces] @ _LUMA
            shade = np.clip(light / max(light.mean(), 1e-6), 0.5, 1.3)
            colours[faces] = paint * shade[:, None]
    return np.clip(colours, 0.0, 1.0)


def _paint(position: float, saturation: float, value: float, grey: float) -> np.ndarray:
    """(3,) sRGB; all arguments are in [0, 1], `position` is around the circle of hues."""
    if grey < _GREY_SHARE:
        return np.full(3, 0.3 + 0.6 * value)
    hue = float(np.interp(position, np.linspace(0, 1, len(_HUES)), _HUES))
    return np.array(colorsys.hsv_to_rgb(hue, 0.75 + 0.25 * saturation, 0.7 + 0.3 * value))


def _jitter(mesh: Mesh, seed: int, colouring: int) -> np.ndarray:
    """The mesh's colours, each material slightly lighter or darker."""
    count = int(mesh.material.max()) + 1
    random = randomness.uniform(seed, f"jitter {mesh.identifier}", colouring, size=count)
    return mesh.colours * (0.85 + 0.3 * random)[mesh.material, None]
