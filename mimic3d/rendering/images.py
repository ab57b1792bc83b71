"""Rendered tensors as images: 8-bit levels, and depth as grey."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mimic3d.cameras import split_label


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to the 256 levels that files hold and metrics see: rounded, clamped, same shape."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def depth_image(depth: Tensor, opacity: Tensor, camera: Tensor, box: float, resolution: int) -> Tensor:
    """Depth as grey: white half a box before the world's origin, black half a box behind it and beyond.

    Pixels darken with falling opacity: where nothing is, there is no depth.

    Args:
        depth: (N, 1, r, r), distance along the ray, world units.
        opacity: (N, 1, r, r) in [0, 1].
        camera: (N, 25).
        box: side of the box that holds the object, world units.
        resolution: of the image; pixels are repeated.
    Returns:
        (N, 3, resolution, resolution) in [-1, 1].
    """
    origin = split_label(camera)[0][:, :3, 3].norm(dim=1).view(-1, 1, 1, 1)
    grey = ((origin - depth) * (2 / box)).clamp(-1, 1)
    grey = (grey + 1) * opacity - 1
    return F.interpolate(grey, size=(resolution, resolution), mode="nearest").expand(-1, 3, -1, -1)
