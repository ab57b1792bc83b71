"""Pictures, videos and meshes of a generator that lies in a folder or in the registry."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mimic3d.config import Config
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    import torch

    from mimic3d.networks.generator import Generator


@contextlib.contextmanager
def open_generator(model: str) -> Iterator[tuple[Generator, Config]]:
    """The generator and config of a folder or a `models:/…` URI, which is pulled for as long as the block.

    Raises:
        UserError: no such model, or a folder that does not hold a generator.
    """
    from mimic3d_platform.registry import pull
    from mimic3d_platform.settings import use_services

    if not model.startswith("models:"):
        yield _load(model)
        return
    use_services()
    with tempfile.TemporaryDirectory(prefix="mimic3d-pull-") as folder:
        yield _load(pull(model, folder))


def _load(folder: str | Path) -> tuple[Generator, Config]:
    from mimic3d.checkpoints.folder import load_generator

    try:
        return load_generator(folder)
    except ValueError as error:
        raise UserError(str(error)) from error


def latents(generator: Generator, config: Config, count: int, seed: int, truncation: float) -> torch.Tensor:
    """(count, num_ws, w_dim), conditioned on the front camera; identity i is a function of (seed, i)."""
    if not math.isfinite(truncation):
        raise UserError(f"truncation is {truncation}: give a number, 1 for none and 0 for the average object")
    import torch

    from mimic3d.export.cameras import front
    from mimic3d.training.randomness import counter_generator

    draws = [
        torch.randn(generator.config.z_dim, generator=counter_generator(seed, "identity", index))
        for index in range(count)
    ]
    with torch.no_grad():
        return generator.mapping(torch.stack(draws), front(config.camera).expand(count, -1), truncation)


def draw_grid(
    generator: Generator,
    config: Config,
    path: Path,
    identities: int,
    seed: int,
    views: int,
    truncation: float = 1.0,
) -> None:
    """A row for each identity, each branch that the generator has from `views` sides."""
    from mimic3d.export.cameras import turntable
    from mimic3d.export.grid import sample_grid

    w = latents(generator, config, identities, seed, truncation)
    grid = sample_grid(generator, w, turntable(config.camera, views))
    buffer = io.BytesIO()
    grid.save(buffer, "png")
    storage.write_bytes(path, buffer.getvalue())


def draw_orbit(
    generator: Generator,
    config: Config,
    path: Path,
    identities: int,
    seed: int,
    frames: int,
    truncation: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """A video round several identities, the 2D branch above the 3D branch where the generator has both."""
    from mimic3d.export.cameras import orbit
    from mimic3d.export.video import orbit_video

    w = latents(generator, config, identities, seed, truncation)
    cameras = orbit(config.camera, frames)
    with storage.translate_errors(path, "write"):
        orbit_video(path, generator, w, cameras, progress=progress)


def draw_mesh(
    generator: Generator, config: Config, path: Path, seed: int, resolution: int, truncation: float = 1.0
) -> int:
    """The coloured surface of one identity; returns its number of faces.

    Raises:
        UserError: another suffix than .ply and .glb, no surface where the density is sought, or no place.
    """
    from mimic3d.export.mesh import FORMATS, extract_mesh, save_mesh

    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} is no {' or '.join(FORMATS)}: name one")
    w = latents(generator, config, 1, seed, truncation)
    try:
        surface = extract_mesh(generator, w, resolution=resolution)
    except ValueError as error:
        raise UserError(f"no mesh of latent {seed}: {error}") from error
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    with storage.translate_errors(path, "write"):
        try:
            save_mesh(surface, partial).replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return len(surface.faces)
