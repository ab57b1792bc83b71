"""Where a source's scene is put in the world of the data set: its centre at the origin, its size scaled.

The box of a generator is about the origin. Photographs with poses of COLMAP have any origin and any unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mimic3d.training.scene_fit import fit_scene
from mimic3d_platform.data.format import camera_labels
from mimic3d_platform.errors import UserError

AUTO = "auto"
# The side that the box of a scene gets by `--scale auto`.
BOX_SIDE = 1.0


@dataclass(frozen=True)
class Placement:
    """A move of the world, then a change of its unit.

    Attributes:
        centre: the point that becomes the origin, in the source's units after its up axis is +y.
        scale: the factor of all distances.
    """

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """The labels (n, 25) of the same cameras in the data set's world."""
        if self == Placement():
            return labels
        return camera_labels.placed(labels, self.centre, self.scale)


def find_placement(
    labels: np.ndarray, centre: str | None, scale: str | None, where: str = "the source"
) -> Placement:
    """The placement that `--centre` and `--scale` ask for.

    Args:
        labels: (n, 25), with +y up.
        centre: `auto` for the point that the cameras look at, or X,Y,Z; None for the origin.
        scale: `auto` for a box of side 1 (`SceneFit.box_warp`) about what the cameras show, or a factor.
        where: the source, for error messages.
    Raises:
        UserError: neither `auto` nor numbers, or the cameras do not look at a common point.
    """
    point = (0.0, 0.0, 0.0) if centre in (None, AUTO) else _parse_point(str(centre))
    factor = 1.0 if scale in (None, AUTO) else _parse_scale(str(scale))
    if AUTO not in (centre, scale):
        return Placement(point, factor)
    scene = fit_scene(labels)
    if scene is None or scene.looking < 0.5:
        option = "--centre" if centre == AUTO else "--scale"
        raise UserError(
            f"{option} auto: the cameras of {where} do not look at a common point; give numbers, or leave it "
            "out"
        )
    if centre == AUTO:
        point = scene.pivot
    if scale == AUTO:
        moved = fit_scene(camera_labels.placed(labels, point, 1.0)) or scene
        factor = BOX_SIDE / moved.box_warp
    return Placement(point, factor)


def _parse_point(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--centre {text}: give auto, or three numbers X,Y,Z in the source's units") from None
    if not all(map(math.isfinite, (x, y, z))):
        raise UserError(f"--centre {text}: give finite numbers")
    return x, y, z


def _parse_scale(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        raise UserError(f"--scale {text}: give auto, or a number") from None
    if not 0 < factor < math.inf:
        raise UserError(f"--scale {text}: give a positive number")
    return factor
