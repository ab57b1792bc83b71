"""The panels of grids and of videos: each branch's image from a camera and, if wanted, its depth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mimic3d.networks.backbone import TriPlanes
from mimic3d.networks.generator import Generator
from mimic3d.rendering.images import depth_image, to_uint8

BRANCH_CAPTIONS = {"2d": "2D branch", "3d": "3D branch"}


def panel_captions(branches: Sequence[str], depth: bool) -> list[str]:
    """The captions of what `render_panels` returns."""
    kinds = ("", ", depth") if depth else ("",)
    return [f"{BRANCH_CAPTIONS[branch]}{kind}" for branch in branches for kind in kinds]


def render_panels(
    G: Generator,
    planes: TriPlanes,
    w: Tensor,
    camera: Tensor,
    branches: Sequence[str],
    depth: bool,
    max_points: int,
) -> list[Tensor]:
    """Renders all identities from one camera, each branch in turn: (N, 3, R, R) uint8 on the CPU.

    Args:
        planes: of w, with detail if the 3D branch is among `branches`.
        w: (N, num_ws, w_dim).
        camera: (25,).
        depth: each branch's image is followed by its depth.
        max_points: see `Generator.view`.
    """
    camera = camera.expand(len(w), -1)
    panels = []
    for branch in branches:
        view = G.view(planes, w, camera, branch, max_points)
        images = [view.image]
        if depth:
            box, resolution = G.rendering.box_warp, G.config.image_resolution
            images.append(depth_image(view.depth, view.opacity, camera, box, resolution))
        panels += [to_uint8(image).cpu() for image in images]
    return panels
