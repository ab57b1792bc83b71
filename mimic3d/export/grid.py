"""Grids of images with captions: a generator's renders, a row for each latent, beside real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mimic3d.export.panels import panel_captions, render_panels
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator
from mimic3d.rendering.images import to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image

# Images smaller than this, in pixels a side, are enlarged by a whole factor with their pixels repeated.
MIN_PANEL = 96

# Numbers of the tri-planes that are in memory at a time: one identity's at the paper's size.
_MAX_PLANE_NUMBERS = 2**25

_GAP, _CAPTION_SIZE, _INK, _PAPER = 2, 12, (60, 60, 60), (255, 255, 255)


def image_grid(
    rows: Sequence[Sequence[Tensor]],
    *,
    columns: Sequence[tuple[str, int]] = (),
    captions: Sequence[str] = (),
    min_panel: int = MIN_PANEL,
) -> Image:
    """Arranges images in rows.

    Args:
        rows: images (3, h, w) of one size, in [-1, 1] or uint8; rows may differ in length.
        columns: captions above groups of columns, each with the number of columns it spans.
        captions: one for each row, to its left.
        min_panel: smaller images are enlarged to at least this many pixels a side.
    Raises:
        ValueError: no image, or images of several sizes.
    """
    from PIL import Image, ImageDraw, ImageFont

    sizes = {image.shape for row in rows for image in row}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs images of one size; got {sorted(map(tuple, sizes)) or 'none'}")
    _, height, width = sizes.pop()
    factor = max(1, -(-min_panel // max(height, width)))
    height, width = height * factor, width * factor
    font = ImageFont.load_default(_CAPTION_SIZE)
    left = max((int(font.getlength(caption)) + 3 * _GAP for caption in captions), default=0)
    top = _CAPTION_SIZE + 3 * _GAP if columns else 0
    count = max(len(row) for row in rows)
    size = (left + count * (width + _GAP) - _GAP, top + len(rows) * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            pixels = image if image.dtype == torch.uint8 else to_uint8(image)
            panel = Image.fromarray(pixels.permute(1, 2, 0).cpu().contiguous().numpy())
            panel = panel.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(panel, (left + j * (width + _GAP), top + i * (height + _GAP)))
        if i < len(captions):
            draw.text((_GAP, top + i * (height + _GAP) + height // 2), captions[i], _INK, font, anchor="lm")
    start = 0
    for caption, span in columns:
        middle = left + (start + span / 2) * (width + _GAP)
        draw.text((middle, top / 2), caption, _INK, font, anchor="mm")
        start += span
    return sheet


@torch.no_grad()
def render_grid(
    G: Generator,
    w: Tensor,
    cameras: Tensor,
    *,
    branches: Sequence[str] | None = None,
    depth: bool = False,
    reals: Tensor | None = None,
    noise: str = "const",
    max_points: int = DEFAULT_MAX_POINTS,
    progress: Callable[[int, int], None] | None = None,
) -> Image:
    """Renders a row for each latent: every branch from every camera, then a real image.

    Args:
        w: (N, num_ws, w_dim).
        cameras: (C, 25), the same for all latents.
        branches: any of "2d" and "3d"; all that the generator has by default.
        depth: each branch's images are followed by their depth.
        reals: (at least N, 3, R, R) in [-1, 1] or uint8, for comparison.
        noise: noise inputs of the planes: random, const or none.
        max_points: sample points in memory at a time; see `Generator.view`.
        progress: called after each camera with the numbers of rendered and of all views, of all latents.
    """
    branches, cameras = branches or G.branches, cameras.to(w.device)
    rows: list[list[Tensor]] = []
    for part in w.split(_identities_at_once(G)):
        planes = G.planes(part, detail="3d" in branches, noise=noise)
        by_camera = []
        for number, camera in enumerate(cameras, start=1):
            by_camera.append(render_panels(G, planes, part, camera, branches, depth, max_points))
            if progress:
                progress(len(rows) * len(cameras) + number * len(part), len(w) * len(cameras))
        # One kind of panel from all cameras side by side: a branch's images, then their depths.
        kinds = [list(panels) for panels in zip(*by_camera, strict=True)]
        rows += [[panel[n] for panels in kinds for panel in panels] for n in range(len(part))]
    columns = [(caption, len(cameras)) for caption in panel_captions(branches, depth)]
    if reals is not None:
        reals = (reals if reals.dtype == torch.uint8 else to_uint8(reals)).cpu()[: len(w)]
        rows = [[*row, real] for row, real in zip(rows, reals, strict=True)]
        columns.append(("real", 1))
    return image_grid(rows, columns=columns)


def _identities_at_once(G: Generator) -> int:
    """Identities whose coarse and detail planes are in memory together."""
    coarse = 3 * G.config.plane_channels * G.config.triplane_resolution**2
    return max(1, _MAX_PLANE_NUMBERS // (coarse * 5))
