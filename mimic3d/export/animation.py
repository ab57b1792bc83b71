"""Animated WebP: a video that pages and READMEs show as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image


def save_animation(target: str | Path | BinaryIO, frames: Iterable[np.ndarray], fps: float = 24) -> None:
    """Writes frames as an animated WebP that repeats, without loss; all are in memory at a time.

    Args:
        frames: (H, W, 3) uint8, all of one size.
    Raises:
        ValueError: no frame.
    """
    images = [Image.fromarray(frame) for frame in frames]
    if not images:
        raise ValueError("a video needs at least one frame")
    duration = round(1000 / fps)
    images[0].save(
        target, "webp", save_all=True, append_images=images[1:], duration=duration, loop=0, lossless=True
    )
