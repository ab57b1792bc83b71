"""Compares a data set's cameras with near, far and box of the config; `rendering=auto` takes them from it."""

from __future__ import annotations

from mimic3d.config import Config, override
from mimic3d.training.scene_fit import SceneFit
from mimic3d_platform.data.format.dataset import open_dataset, read_cameras
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.format.scene import scene_of
from mimic3d_platform.errors import UserError

# A training cannot succeed where the rays, or the box, hold less than this share of what the cameras show,
# or where the box is so many times larger that a tri-plane has few cells left for the object.
_LEAST_SHARE = 0.5
_MOST_SPARE = 3.0
# Smaller differences are a matter of taste.
_TOLERANCE = 0.1


def fit_to_data(config: Config) -> Config:
    """The config with near, far, box and the camera of its pictures as the data set `data.uri` wants them.

    Raises:
        UserError: the set cannot be read, or its cameras do not look at a common point.
    """
    uri = config.data.uri
    manifest = open_dataset(uri)
    scene = scene_of(manifest, read_cameras(uri))
    if scene is None or scene.looking < _LEAST_SHARE:
        raise UserError(
            f"--set rendering=auto: the cameras of {uri} do not look at a common point; give rendering.near, "
            "rendering.far and rendering.box_warp as numbers"
        )
    if scene.off_centre:
        raise UserError(f"--set rendering=auto: the objects of {uri} {_off_centre(scene)}")
    return override(config, scene.overrides())


def check_scene(config: Config, manifest: Manifest) -> str | None:
    """Compares the cameras of the data set with the config.

    Returns:
        A line for the user where they differ, but a training may still succeed.
    Raises:
        UserError: the rays or the box hold too little, or nothing, of what the cameras show.
    """
    uri = config.data.uri
    scene = scene_of(manifest, read_cameras(uri))
    if scene is None:
        return None
    remedy = "give --set rendering=auto, or values of your own (docs/own-data.md)"
    if scene.looking < _LEAST_SHARE:
        return (
            f"the cameras of {uri} look away from their common point: are its axes those of OpenCV (z "
            "forward)? `mimic3d data inspect --cameras` draws them"
        )
    wanted = (scene.near, scene.far, scene.box_warp)
    if scene.off_centre:
        raise UserError(f"the objects of {uri} {_off_centre(scene)}")
    rendering, camera = config.rendering, config.camera
    given = (rendering.near, rendering.far, rendering.box_warp)
    what = (
        f"the cameras of {uri} want rendering.near, far and box_warp of {_listed(wanted)}, and the config "
        f"has {_listed(given)}"
    )
    rays = _overlap((scene.near, scene.far), (rendering.near, rendering.far)) / (scene.far - scene.near)
    box = rendering.box_warp / scene.box_warp
    if min(rays, box) < _LEAST_SHARE or box > _MOST_SPARE:
        raise UserError(f"{what}: {remedy}")
    if min(rays, box) < 1 - _TOLERANCE:
        return f"{what}, so that parts of the objects may be cut off: {remedy}"
    if abs(camera.focal / scene.focal - 1) > _TOLERANCE:
        return (
            f"the images of {uri} have a focal length of {scene.focal:g}, and camera.focal, with which "
            f"pictures of the model are rendered, is {camera.focal:g}: {remedy}"
        )
    return None


def _off_centre(scene: SceneFit) -> str:
    return (
        f"lie about ({_listed(scene.pivot)}), farther from the origin than they are large, and the box is "
        "about the origin: ingest the images again with --centre auto"
    )


def _overlap(first: tuple[float, float], second: tuple[float, float]) -> float:
    return max(min(first[1], second[1]) - max(first[0], second[0]), 0.0)


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
