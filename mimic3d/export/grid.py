"""Grids of images with captions: what a generator draws, latent by latent, beside the reals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mimic3d.export.drawing import captions_of, cells_of, to_uint8
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator

if TYPE_CHECKING:
    from PIL.Image import Image

# Images smaller than this are enlarged by a whole factor, pixels kept as they are, so that a screen shows
# them.
MIN_CELL = 96

# Planes that are in memory at a time, in numbers: those of one identity at the paper's size, of all at small
# ones.
_MAX_PLANES = 2**25

_GAP, _CAPTION_SIZE, _INK, _PAPER = 2, 12, (60, 60, 60), (255, 255, 255)


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
    depth: bool = False,
    reals: Tensor | None = None,
    noise: str = "const",
    max_points: int = DEFAULT_MAX_POINTS,
) -> Image:
    """A row for each latent: every branch from every camera, then a real image.

    Args:
        w: (N, num_ws, w_dim).
        cameras: (C, 25), the same for all latents.
        branches: any of "2d" and "3d"; all that the generator has by default.
        depth: each branch's images are followed by their depth.
        reals: (at least N, 3, R, R) in [-1, 1] or uint8, for comparison.
        noise: of the planes: random, const or none.
        max_points: evaluated at a time; see `Generator.view`.
    """
    branches, cameras = branches or G.branches, cameras.to(w.device)
    rows: list[list[Tensor]] = []
    for part in w.split(max(1, _MAX_PLANES // (96 * 5 * G.config.triplane_resolution**2))):
        planes = G.planes(part, detail="3d" in branches, noise=noise)
        by_camera = [cells_of(G, planes, part, camera, branches, depth, max_points) for camera in cameras]
        # What is seen from all cameras stands side by side: the branch's images, then their depths.
        kinds = [list(views) for views in zip(*by_camera, strict=True)]
        rows += [[view[n] for views in kinds for view in views] for n in range(len(part))]
    columns = [(caption, len(cameras)) for caption in captions_of(branches, depth)]
    if reals is not None:
        reals = (reals if reals.dtype == torch.uint8 else to_uint8(reals)).cpu()[: len(w)]
        rows = [[*row, real] for row, real in zip(rows, reals, strict=True)]
        columns.append(("real", 1))
    return image_grid(rows, columns=columns)
