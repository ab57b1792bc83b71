"""The scene that a data set's cameras show: what near, far and box a training of it wants."""

from __future__ import annotations

import numpy as np

from mimic3d.training.scene_fit import SceneFit, fit_scene
from mimic3d_platform.data.format.manifest import Manifest

# `mimic3d data render` fits every model into a cube of this side about the origin.
_RENDERED_SIDE = 1.0


def scene_of(manifest: Manifest, cameras: np.ndarray) -> SceneFit | None:
    """The scene of a data set; None where its cameras do not look at a common point.

    Args:
        cameras: (n, 25), those of all rows.
    """
    rendered = manifest.provenance.get("tool") == "mimic3d data render"
    return fit_scene(cameras, object_side=_RENDERED_SIDE if rendered else None)
