"""The preview pictures of a registered generator: a grid, an orbit and its spatiotemporal textures."""

from __future__ import annotations

from pathlib import Path

import torch

from mimic3d.config import Config
from mimic3d.evaluation.texture import spatiotemporal_texture
from mimic3d.export.grid import image_grid
from mimic3d.export.orbits import front, orbit, turntable
from mimic3d.networks.generator import Generator
from mimic3d_platform.models.rendering import RenderOptions, latents_of, write_grid, write_video
from mimic3d_platform.models.version_files import PREVIEWS

GRID, ORBIT, TEXTURE = "grid.png", "orbit.mp4", "texture.png"
_SEEDS, _VIEWS, _FRAMES, _ROWS = 4, 4, 24, 32
# Sample points along rays that grid and orbit may take on a CPU: some 10 s of one core.
_CPU_POINTS = 5 * 10**7


def write_previews(generator: Generator, config: Config, folder: Path) -> list[str]:
    """Renders the previews into `folder/previews`, fewer views of a large generator where there is no GPU.

    Returns:
        their paths in `folder`.
    """
    generator = generator.to("cuda" if torch.cuda.is_available() else "cpu")
    place = folder / PREVIEWS
    place.mkdir(parents=True, exist_ok=True)
    share = _affordable(generator, config)
    seeds, views, frames = (max(2, round(count * share**0.5)) for count in (_SEEDS, _VIEWS, _FRAMES))
    rows = max(8, round(_ROWS * share))
    options = RenderOptions(tuple(range(seeds)))
    write_grid(generator, config, place / GRID, options, turntable(config.camera, views))
    single = RenderOptions((0,))
    write_video(generator, config, place / ORBIT, single, orbit(config.camera, frames))
    _write_texture(generator, config, place / TEXTURE, single, rows)
    return [f"{PREVIEWS}/{name}" for name in (GRID, ORBIT, TEXTURE)]


def _write_texture(
    generator: Generator, config: Config, path: Path, options: RenderOptions, rows: int
) -> None:
    """Writes the image's middle row, stacked along an orbit, for each branch below its front view."""
    w = latents_of(generator, config, options)
    cameras = orbit(config.camera, rows).to(w.device)
    stacks = [
        spatiotemporal_texture(generator, w, cameras, branch)
        for branch in generator.branches
        # The 2D branch renders whole images for one row of each.
        if branch == "3d" or rows == _ROWS or len(generator.branches) == 1
    ]
    size = config.model.image_resolution
    resized = [
        torch.nn.functional.interpolate(stack[None], (size, size), mode="bilinear", antialias=True)[0]
        for stack in stacks
    ]
    planes = generator.planes(w)
    with torch.no_grad():
        view = generator.view(planes, w, front(config.camera).to(w.device), generator.branches[-1]).image[0]
    captions = [*(f"{branch} texture" for branch in generator.branches[-len(stacks) :]), "front"]
    image_grid([[*resized, view]], columns=[(caption, 1) for caption in captions]).save(path)


def _affordable(generator: Generator, config: Config) -> float:
    """The share of the previews' views that a CPU renders in reasonable time; 1 on a GPU."""
    if next(generator.parameters()).is_cuda:
        return 1.0
    settings = config.rendering
    samples = settings.guided_samples or settings.coarse_samples + settings.importance_samples
    points = config.model.image_resolution**2 * samples * (_SEEDS * _VIEWS + _FRAMES)
    return min(1.0, _CPU_POINTS / points)
