"""What a cell of a grid or of a frame shows: a branch's image, or how far away what it shows is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mimic3d.cameras import split_label
from mimic3d.networks.backbone import TriPlanes
from mimic3d.networks.generator import Generator, View

BRANCH_CAPTIONS = {"2d": "2D branch", "3d": "3D branch"}


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to the 256 levels that files hold and metrics see: rounded, clamped, same shape."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def depth_image(view: View, camera: Tensor, box: float, resolution: int) -> Tensor:
    """Depth as grey: white half a box before the world's centre, black half a box behind it and beyond.

    It fades to black with the opacity, as there is no depth where there is nothing.

    Args:
        view: depth and opacity (N, 1, r, r).
        camera: (N, 25).
        box: side of the box that holds the object, world units.
        resolution: of the image; pixels are repeated.
    Returns:
        (N, 3, resolution, resolution) in [-1, 1].
    """
    centre = split_label(camera)[0][:, :3, 3].norm(dim=1).view(-1, 1, 1, 1)
    grey = ((centre - view.depth) * (2 / box)).clamp(-1, 1)
    grey = (grey + 1) * view.opacity - 1
    return F.interpolate(grey, size=(resolution, resolution), mode="nearest").expand(-1, 3, -1, -1)


def captions_of(branches: Sequence[str], depth: bool) -> list[str]:
    """The captions of what `cells_of` draws."""
    kinds = ("", ", depth") if depth else ("",)
    return [f"{BRANCH_CAPTIONS[branch]}{kind}" for branch in branches for kind in kinds]


def cells_of(
    G: Generator,
    planes: TriPlanes,
    w: Tensor,
    camera: Tensor,
    branches: Sequence[str],
    depth: bool,
    max_points: int,
) -> list[Tensor]:
    """What each branch draws of all identities from one camera: (N, 3, R, R) uint8 on the CPU.

    Args:
        planes: of w, with detail if the 3D branch is among `branches`.
        w: (N, num_ws, w_dim).
        camera: (25,).
        depth: each branch's image is followed by its depth.
    """
    camera = camera.expand(len(w), -1)
    cells = []
    for branch in branches:
        view = G.view(planes, w, camera, branch, max_points)
        images = [view.image]
        if depth:
            images.append(depth_image(view, camera, G.rendering.box_warp, G.config.image_resolution))
        cells += [to_uint8(image).cpu() for image in images]
    return cells
