"""Videos along camera paths and from latent to latent, as H.264 in mp4 or as animated WebP."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimic3d.export.animation import save_animation
from mimic3d.export.ffmpeg import count_frames, encode_h264
from mimic3d.export.grid import MIN_PANEL, image_grid
from mimic3d.export.panels import panel_captions, render_panels
from mimic3d.export.whole_file import whole_file
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator

SUFFIXES = (".mp4", ".webp")


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: int = 24) -> Path:
    """Writes frames as mp4 (H.264, yuv420p) or animated WebP; the file appears complete or not at all.

    Args:
        path: ends in `.mp4` or `.webp`.
        frames: (H, W, 3) uint8, all of one size; in an mp4, an odd last row or column is cut off, since H.264
            needs even sizes.
    Raises:
        ValueError: another ending, or no frame.
        OSError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"videos are written as {' or '.join(SUFFIXES)}; got {path.name}")
    with whole_file(path) as partial:
        (save_animation if suffix == ".webp" else _write_mp4)(partial, frames, fps)
    return path


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("a video needs at least one frame")
    height, width = (size // 2 * 2 for size in first.shape[:2])
    cut = (np.ascontiguousarray(frame[:height, :width]) for frame in itertools.chain([first], frames))
    count = encode_h264(path, cut, (width, height), fps)
    if count_frames(path) != count:  # The encoder does not report all of its failures.
        raise OSError("the encoder did not write all frames; the disk may be full")


@torch.no_grad()
def render_video(
    path: str | Path,
    G: Generator,
    w: Tensor,
    cameras: Tensor,
    *,
    branches: Sequence[str] | None = None,
    depth: bool = False,
    noise: str = "const",
    fps: int = 24,
    min_panel: int = 2 * MIN_PANEL,
    max_points: int = DEFAULT_MAX_POINTS,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Renders identities along a camera path as a video; they may change from frame to frame.

    Args:
        path: ends in `.mp4` or `.webp`.
        w: (N, num_ws, w_dim), the identities from left to right; or (T, N, num_ws, w_dim), for each frame.
        cameras: (T, 25), one for each frame, such as `export.orbits.orbit`.
        branches: from top to bottom; all that the generator has by default.
        depth: each branch's row is followed by its depth.
        noise: noise inputs of the planes: random, const or none.
        max_points: sample points in memory at a time; see `Generator.view`.
        progress: called after each frame with the numbers of rendered and of all frames.
    """
    branches, cameras = branches or G.branches, cameras.to(w.device)
    captions = panel_captions(branches, depth)
    fixed = G.planes(w, detail="3d" in branches, noise=noise) if w.dim() == 3 else None

    def frames() -> Iterable[np.ndarray]:
        for i, camera in enumerate(cameras):
            shown = w if fixed is not None else w[i]
            planes = fixed or G.planes(shown, detail="3d" in branches, noise=noise)
            rows = render_panels(G, planes, shown, camera, branches, depth, max_points)
            yield np.asarray(image_grid([list(row) for row in rows], captions=captions, min_panel=min_panel))
            if progress:
                progress(i + 1, len(cameras))

    return write_video(path, frames(), fps)
