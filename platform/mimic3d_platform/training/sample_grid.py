"""The grid of samples that a run logs: both branches from several sides, with real images beside them."""

from __future__ import annotations

import contextlib

import torch
from PIL.Image import Image

from mimic3d.config import Config
from mimic3d.export.grid import render_grid
from mimic3d.export.orbits import front, turntable
from mimic3d.networks.generator import Generator
from mimic3d.randomness import counter_generator
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.stream.row_reader import RowReader

ROWS = 6
VIEWS = 4


@torch.no_grad()
def render_sample_grid(
    generator: Generator, config: Config, cameras: torch.Tensor, manifest: Manifest
) -> Image:
    """Renders the same `ROWS` latents at every call, each from `VIEWS` sides.

    Args:
        cameras: (images of the data set, 25), of which the real images are drawn.
        manifest: of the data set `config.data.uri`.
    """
    device = next(generator.parameters()).device
    source = counter_generator(0, "grid")
    z = torch.randn(ROWS, generator.config.z_dim, generator=source).to(device)
    rows = torch.randperm(len(cameras), generator=source)[:ROWS]
    data = config.data
    with contextlib.closing(
        RowReader(
            data.uri,
            manifest,
            data.cache_bytes,
            skip_bad=data.max_bad_images > 0,
            patience_s=data.patience_s,
        )
    ) as reader:
        reals, _ = reader.read(rows.numpy())
    w = generator.mapping(z, front(config.camera).to(device).expand(ROWS, -1))
    views = turntable(config.camera, VIEWS).to(device)
    return render_grid(generator, w, views, reals=torch.from_numpy(reals))
