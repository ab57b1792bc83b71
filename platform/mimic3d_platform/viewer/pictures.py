"""From what a branch renders to the picture on the browser's canvas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mimic3d.cameras import pixel_grid, rays
from mimic3d.rendering.images import depth_image, to_uint8
from mimic3d_platform.viewer.view_settings import Channel

# Columns between pictures that stand side by side, as a share of their height.
_GAP = 1 / 32
# The branches of a trained model differ by a few of 256 levels, which would be too dark to see.
_DIFFERENCE_GAIN = 4.0


class Rendered(NamedTuple):
    """One branch from one camera; the maps may be smaller than the image."""

    image: Tensor
    """(1, 3, R, R), about [-1, 1]."""
    depth: Tensor
    """(1, 1, r, r), distance along the ray, world units."""
    opacity: Tensor
    """(1, 1, r, r), from 0 to 1."""


def channel_image(rendered: Rendered, channel: Channel, camera: Tensor, box: float, paper: float) -> Tensor:
    """(3, R, R) in [-1, 1]: one channel of a render.

    Args:
        camera: (1, 25), that it was rendered from.
        box: side of the box that holds the object, world units.
        paper: the grey of the background in [-1, 1], for normals.
    """
    size = rendered.image.shape[-1]
    if channel == "colour":
        return rendered.image[0]
    if channel == "depth":
        return depth_image(rendered.depth, rendered.opacity, camera, box, size)[0]
    if channel == "normals":
        maps = normals(rendered.depth, camera) * rendered.opacity + paper * (1 - rendered.opacity)
    else:
        maps = (rendered.opacity * 2 - 1).expand(-1, 3, -1, -1)
    return F.interpolate(maps, size=(size, size), mode="nearest")[0]


def normals(depth: Tensor, camera: Tensor) -> Tensor:
    """(1, 3, r, r): unit normals of the surface at `depth` in world axes, towards the camera.

    They are the cross products of the differences between neighbouring surface points.

    Args:
        depth: (1, 1, r, r), distance along the ray, world units.
        camera: (1, 25).
    """
    size = depth.shape[-1]
    origins, directions = rays(camera, pixel_grid(size, device=depth.device))
    points = origins + directions * depth.flatten(1)[..., None]
    padded = F.pad(points.transpose(1, 2).unflatten(-1, (size, size)), (1, 1, 1, 1), mode="replicate")
    right = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    # x to the right × y down is z, away from the camera: the other order faces it.
    return F.normalize(torch.linalg.cross(down, right, dim=1), dim=1)


def difference(first: Tensor, second: Tensor) -> Tensor:
    """(3, R, R): four times the absolute difference of two images in [-1, 1], black where they are equal."""
    return (first - second).abs() * _DIFFERENCE_GAIN - 1


def resized(image: Tensor, size: int) -> Tensor:
    """(3, R, R) to (3, size, size), bilinear."""
    if image.shape[-1] == size:
        return image
    return F.interpolate(image[None], size=(size, size), mode="bilinear", antialias=True)[0]


def on_canvas(panels: list[Tensor], aspect: float, paper: float) -> np.ndarray:
    """Places square pictures on a canvas of the browser's proportions.

    One picture is as high as the canvas, so that the browser's perspective camera, whose field of view is
    the canvas's height, agrees with it; on a narrow canvas its sides are cut off. Several stand side by side,
    as large as fits.

    Args:
        panels: (3, S, S) in [-1, 1], of one size.
        aspect: width of the canvas over its height.
        paper: the grey around the pictures, in [-1, 1].
    Returns:
        (H, W, 3) uint8.
    """
    size = panels[0].shape[-1]
    gap = max(1, round(size * _GAP))
    between = torch.full((3, size, gap), paper).to(panels[0])
    row = [piece for panel in panels for piece in (between, panel)][1:]
    picture = torch.cat(row, dim=2) if len(panels) > 1 else panels[0]
    width = round(size * aspect)
    if len(panels) > 1 and width < picture.shape[2]:
        # The row fills the canvas's width; there is room above and below.
        width = picture.shape[2]
        room = max(0, round(width / aspect) - size)
        picture = F.pad(picture, (0, 0, room // 2, room - room // 2), value=paper)
    room = width - picture.shape[2]
    picture = F.pad(picture, (room // 2, room - room // 2), value=paper)
    return to_uint8(picture).permute(1, 2, 0).cpu().contiguous().numpy()
