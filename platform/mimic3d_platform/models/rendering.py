"""Pictures, videos and meshes of a generator that lies in a folder or in the registry."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimic3d.config import CameraConfig, Config
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    import torch

    from mimic3d.networks.generator import Generator


class NoSurfaceError(UserError):
    """The density does not cross the level: of a model that has hardly trained."""


@dataclass(frozen=True)
class Subject:
    """What is drawn of a generator."""

    seeds: tuple[int, ...] = tuple(range(6))
    latents: Path | None = None
    """A file of latents, in place of the seeds'; see `export.latents.read_latents`."""
    truncation: float = 1.0
    truncation_cutoff: int | None = None
    branches: tuple[str, ...] | None = None
    """All that the generator has when None."""
    depth: bool = False
    noise: str = "const"
    memory: int = 2**31
    """Bytes that the samples along rays may take at a time."""


@contextlib.contextmanager
def open_generator(model: str) -> Iterator[tuple[Generator, Config]]:
    """The generator and config of a folder or a `models:/…` URI, which is pulled for as long as the block.

    It is on the GPU where there is one.

    Raises:
        UserError: no such model, or a folder that does not hold a generator.
    """
    from mimic3d_platform.models.registry import pull
    from mimic3d_platform.settings import use_services

    if not model.startswith("models:"):
        yield _load(model)
        return
    use_services()
    with tempfile.TemporaryDirectory(prefix="mimic3d-pull-") as folder:
        yield _load(pull(model, folder))


def _load(folder: str | Path) -> tuple[Generator, Config]:
    import torch

    from mimic3d.checkpoints.folder import load_generator

    with _as_user_errors():
        generator, config = load_generator(folder)
    return generator.to("cuda" if torch.cuda.is_available() else "cpu"), config


def latents(generator: Generator, config: Config, subject: Subject) -> torch.Tensor:
    """(N, num_ws, w_dim) of the subject, on the generator's device; z is conditioned on the front camera."""
    if not math.isfinite(subject.truncation):
        raise UserError(
            f"truncation is {subject.truncation}: give a number, 1 for none and 0 for the average object"
        )
    import torch

    from mimic3d.export.cameras import front
    from mimic3d.export.latents import latents_of_seeds, read_latents

    mapping = generator.backbone.mapping
    how = (subject.truncation, subject.truncation_cutoff)
    with torch.no_grad(), _as_user_errors():
        found = (
            read_latents(subject.latents, generator)
            if subject.latents
            else latents_of_seeds(config.model, subject.seeds)
        ).to(mapping.w_avg.device)
        if found.dim() == 3:
            return mapping.truncate(found, *how)
        return mapping(found, front(config.camera).to(found.device).expand(len(found), -1), *how)


def chosen_seeds(text: str) -> tuple[int, ...]:
    """The numbers of "0-5,9"."""
    from mimic3d.export.latents import parse_seeds

    with _as_user_errors():
        return parse_seeds(text)


def camera_path(settings: CameraConfig, file: Path | None, count: int, *, closed: bool) -> torch.Tensor:
    """(T, 25): those of a file, or `count` about the object, which `closed` brings back to the first."""
    from mimic3d.export.camera_path import read_cameras
    from mimic3d.export.cameras import orbit, turntable

    if file is not None:
        with _as_user_errors():
            return read_cameras(file, settings)
    return orbit(settings, count) if closed else turntable(settings, count)


def draw_grid(
    generator: Generator, config: Config, path: Path, subject: Subject, cameras: torch.Tensor
) -> None:
    """A row for each latent, each branch from all `cameras` (C, 25)."""
    from mimic3d.export.grid import sample_grid

    w = latents(generator, config, subject)
    with _as_user_errors():
        grid = sample_grid(generator, w, cameras, **_settings(generator, subject))
    buffer = io.BytesIO()
    grid.save(buffer, "png")
    storage.write_bytes(path, buffer.getvalue())


def draw_video(
    generator: Generator,
    config: Config,
    path: Path,
    subject: Subject,
    cameras: torch.Tensor,
    interpolate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Latents side by side along `cameras` (T, 25); or one that changes into each of them in turn."""
    from mimic3d.export.latents import interpolate as way_through
    from mimic3d.export.video import film

    w = latents(generator, config, subject)
    if interpolate:
        w = way_through(w, len(cameras))[:, None]
    with storage.translate_errors(path, "write"), _as_user_errors():
        film(path, generator, w, cameras, progress=progress, **_settings(generator, subject))


def draw_mesh(
    generator: Generator,
    config: Config,
    path: Path,
    subject: Subject,
    resolution: int,
    *,
    level: float | None = None,
    watertight: bool = True,
    largest_only: bool = False,
) -> int:
    """The coloured surface of one identity; returns its number of faces.

    Raises:
        NoSurfaceError: none where the density is sought.
        UserError: another suffix than .ply and .glb, or no place.
    """
    from mimic3d.export.mesh import DENSITY_LEVEL, FORMATS, MAX_POINTS, extract_mesh, save_mesh
    from mimic3d.export.surface import NoSurface

    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path} is no {' or '.join(FORMATS)}: name one")
    w = latents(generator, config, subject)
    settings = _settings(generator, subject)
    try:
        surface = extract_mesh(
            generator,
            w,
            branch=(subject.branches or generator.branches)[-1],
            resolution=resolution,
            level=DENSITY_LEVEL if level is None else level,
            watertight=watertight,
            largest_only=largest_only,
            noise=subject.noise,
            max_points=min(settings["max_points"], MAX_POINTS),
        )
    except ValueError as error:
        what = subject.latents or f"latent {subject.seeds[0]}"
        kind = NoSurfaceError if isinstance(error, NoSurface) else UserError
        raise kind(f"no mesh of {what}: {error}") from error
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    with storage.translate_errors(path, "write"):
        try:
            save_mesh(surface, partial).replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return len(surface.faces)


def _settings(generator: Generator, subject: Subject) -> dict:
    """What grids and videos share, as the arguments of `sample_grid` and `film`."""
    from mimic3d.networks.generator import points_within

    with _as_user_errors():
        for branch in subject.branches or ():
            generator.require_branch(branch)
    return {
        "branches": subject.branches,
        "depth": subject.depth,
        "noise": subject.noise,
        "max_points": points_within(subject.memory),
    }


@contextlib.contextmanager
def _as_user_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(str(error)) from error
