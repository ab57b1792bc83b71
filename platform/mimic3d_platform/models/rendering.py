"""Image grids, videos and meshes of a generator."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch

from mimic3d.config import CameraConfig, Config
from mimic3d.export import latents as export_latents
from mimic3d.export import marching_cubes
from mimic3d.export.camera_files import read_cameras
from mimic3d.export.grid import render_grid
from mimic3d.export.mesh import DENSITY_LEVEL, FORMATS, MAX_POINTS, extract_mesh, save_mesh
from mimic3d.export.orbits import front, orbit, turntable
from mimic3d.export.video import render_video
from mimic3d.networks.generator import Generator, points_within
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError, user_errors
from mimic3d_platform.storage import Uri


class NoSurfaceError(UserError):
    """The density nowhere crosses the level: the model has hardly trained."""


@dataclass(frozen=True)
class RenderOptions:
    """Options of rendering a generator.

    Attributes:
        seeds: of the latents z.
        latents: a file of latents, in place of the seeds; see `mimic3d.export.latents.read_latents`.
        truncation: 1 for none, 0 for the average object.
        truncation_cutoff: how many of the first layers are truncated; all when None.
        branches: "2d", "3d" or both; all that the generator has when None.
        depth: whether each image has its depth beside it.
        noise: of the planes: "const", "random" or "none".
        memory: bytes that the samples along rays may take at a time.
    """

    seeds: tuple[int, ...] = tuple(range(6))
    latents: Uri | None = None
    truncation: float = 1.0
    truncation_cutoff: int | None = None
    branches: tuple[str, ...] | None = None
    depth: bool = False
    noise: str = "const"
    memory: int = 2**31


class _Shared(TypedDict):
    """The arguments that `render_grid` and `render_video` share."""

    branches: tuple[str, ...] | None
    depth: bool
    noise: str
    max_points: int


def latents_of(generator: Generator, config: Config, options: RenderOptions) -> torch.Tensor:
    """(N, num_ws, w_dim) latents w of the options' seeds or file, on the generator's device.

    The mapping is conditioned on the front camera.

    Raises:
        UserError: a truncation that is no number, or a file that holds no latents of this generator.
    """
    if not math.isfinite(options.truncation):
        raise UserError(
            f"truncation is {options.truncation}: give a number, 1 for none and 0 for the average object"
        )
    mapping = generator.backbone.mapping
    device = next(generator.parameters()).device
    truncation = (options.truncation, options.truncation_cutoff)
    with torch.no_grad(), user_errors():
        if options.latents:
            with storage.read_locally(options.latents) as file:
                latents = export_latents.read_latents(file, generator).to(device)
        else:
            latents = export_latents.latents_of_seeds(config.model, options.seeds).to(device)
        if latents.dim() == 3:
            return mapping.truncate(latents, *truncation)
        cameras = front(config.camera).to(device).expand(len(latents), -1)
        return mapping(latents, cameras, *truncation)


def parse_seeds(text: str) -> tuple[int, ...]:
    """The numbers that "0-5,9" stands for.

    Raises:
        UserError: the text is no list of numbers and ranges.
    """
    with user_errors():
        return export_latents.parse_seeds(text)


def camera_path(settings: CameraConfig, file: Uri | None, count: int, *, closed: bool) -> torch.Tensor:
    """(T, 25) camera labels: those of a file, or `count` views around the object.

    Args:
        closed: whether the path returns to its first view, as for a video.
    Raises:
        UserError: the file holds no camera path.
    """
    if file is not None:
        with storage.read_locally(file) as path, user_errors():
            return read_cameras(path, settings)
    return orbit(settings, count) if closed else turntable(settings, count)


def write_grid(
    generator: Generator,
    config: Config,
    uri: Uri,
    options: RenderOptions,
    cameras: torch.Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a PNG with one row for each latent: each branch from all `cameras` (C, 25).

    Args:
        progress: called with the number of views rendered and their total.
    """
    storage.check_writable(uri)
    w = latents_of(generator, config, options)
    with user_errors():
        grid = render_grid(generator, w, cameras, progress=progress, **_shared(generator, options))
    buffer = io.BytesIO()
    grid.save(buffer, "png")
    storage.write_bytes(uri, buffer.getvalue())


def write_video(
    generator: Generator,
    config: Config,
    uri: Uri,
    options: RenderOptions,
    cameras: torch.Tensor,
    interpolate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a video, MP4 or animated WebP, along `cameras` (T, 25).

    Args:
        interpolate: show one object that changes from latent to latent, in place of all side by side.
        progress: called with the number of frames rendered and their total.
    """
    w = latents_of(generator, config, options)
    if interpolate:
        w = export_latents.interpolate(w, len(cameras))[:, None]
    with storage.write_locally(uri) as path, storage.translate_errors(path, "write"), user_errors():
        render_video(path, generator, w, cameras, progress=progress, **_shared(generator, options))


def write_mesh(
    generator: Generator,
    config: Config,
    uri: Uri,
    options: RenderOptions,
    resolution: int,
    *,
    level: float | None = None,
    watertight: bool = True,
    largest_only: bool = False,
) -> int:
    """Writes the coloured surface of the first latent's object; returns its number of faces.

    Args:
        uri: with the suffix .ply or .glb.
        resolution: density samples along each side of the box.
        level: the raw density at the surface; `mimic3d.export.mesh.DENSITY_LEVEL` when None.
        watertight: whether the surface is closed at the sides of the box.
        largest_only: whether only the largest connected piece is kept.
    Raises:
        NoSurfaceError: the density nowhere crosses the level.
        UserError: another suffix, or a place that cannot be written.
    """
    if Path(uri).suffix.lower() not in FORMATS:
        raise UserError(f"{uri} is no {' or '.join(FORMATS)}: name one")
    storage.check_writable(uri)
    w = latents_of(generator, config, options)
    shared = _shared(generator, options)
    try:
        surface = extract_mesh(
            generator,
            w,
            branch=(options.branches or generator.branches)[-1],
            resolution=resolution,
            level=DENSITY_LEVEL if level is None else level,
            watertight=watertight,
            largest_only=largest_only,
            noise=options.noise,
            max_points=min(shared["max_points"], MAX_POINTS),
        )
    except ValueError as error:
        what = options.latents or f"latent {options.seeds[0]}"
        kind = NoSurfaceError if isinstance(error, marching_cubes.NoSurfaceError) else UserError
        raise kind(f"no mesh of {what}: {error}") from error
    with storage.write_locally(uri) as path, storage.translate_errors(path, "write"):
        save_mesh(surface, path)
    return len(surface.faces)


def _shared(generator: Generator, options: RenderOptions) -> _Shared:
    with user_errors():
        for branch in options.branches or ():
            generator.require_branch(branch)
    return {
        "branches": options.branches,
        "depth": options.depth,
        "noise": options.noise,
        "max_points": points_within(options.memory),
    }
