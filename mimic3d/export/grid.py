"""Grids of images with captions: what a generator draws, latent by latent, beside the reals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator

if TYPE_CHECKING:
    from PIL.Image import Image

BRANCH_CAPTIONS = {"2d": "2D branch", "3d": "3D branch"}
# Images smaller than this are enlarged by a whole factor, pixels kept as they are, so that a screen shows
# them.
MIN_CELL = 96

_GAP, _CAPTION_SIZE, _INK, _PAPER = 2, 12, (60, 60, 60), (255, 255, 255)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to the 256 levels that files hold and metrics see: rounded, clamped, same shape."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def image_grid(
    rows: Sequence[Sequence[Tensor]],
    *,
    columns: Sequence[tuple[str, int]] = (),
    captions: Sequence[str] = (),
    min_cell: int = MIN_CELL,
) -> Image:
    """Lay images out in rows.

    Args:
        rows: images (3, h, w) of one size, in [-1, 1] or uint8; rows may differ in length.
        columns: captions above groups of columns, each with the number of columns it spans.
        captions: one for each row, at its left.
        min_cell: smaller images are enlarged to at least this many pixels a side.
    Raises:
        ValueError: no image, or images of several sizes.
    """
    from PIL import Image, ImageDraw, ImageFont

    sizes = {image.shape for row in rows for image in row}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs images of one size; got {sorted(map(tuple, sizes)) or 'none'}")
    _, height, width = sizes.pop()
    factor = max(1, -(-min_cell // max(height, width)))
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
            cell = Image.fromarray(pixels.permute(1, 2, 0).cpu().contiguous().numpy())
            cell = cell.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(cell, (left + j * (width + _GAP), top + i * (height + _GAP)))
        if i < len(captions):
            draw.text((_GAP, top + i * (height + _GAP) + height // 2), captions[i], _INK, font, anchor="lm")
    start = 0
    for caption, span in columns:
        middle = left + (start + span / 2) * (width + _GAP)
        draw.text((middle, top / 2), caption, _INK, font, anchor="mm")
        start += span
    return sheet


@torch.no_grad()
def sample_grid(
    G: Generator,
    w: Tensor,
    cameras: Tensor,
    *,
    branches: Sequence[str] | None = None,
    reals: Tensor | None = None,
    max_points: int = DEFAULT_MAX_POINTS,
) -> Image:
    """A row for each latent: every branch from every camera, then a real image.

    Args:
        w: (N, num_ws, w_dim).
        cameras: (C, 25), the same for all latents.
        branches: any of "2d" and "3d"; all that the generator has by default.
        reals: (at least N, 3, R, R) in [-1, 1] or uint8, for comparison.
    """
    branches = branches or G.branches
    planes = G.planes(w, detail="3d" in branches, noise="const")
    drawn = []
    for branch in branches:
        views = [G.view(planes, w, camera.expand(len(w), -1), branch, max_points).image for camera in cameras]
        drawn += [to_uint8(view).cpu() for view in views]
    columns = [(BRANCH_CAPTIONS[branch], len(cameras)) for branch in branches]
    if reals is not None:
        drawn.append((reals if reals.dtype == torch.uint8 else to_uint8(reals)).cpu()[: len(w)])
        columns.append(("real", 1))
    return image_grid([list(row) for row in zip(*drawn, strict=True)], columns=columns)
