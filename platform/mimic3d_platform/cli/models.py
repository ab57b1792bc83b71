"""`mimic3d pull`, `register`, `import-checkpoint`, `render`, `mesh`: what becomes of a generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimic3d_platform.cli.app import Model, app
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError


@app.command()
def pull(
    uri: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/3.")],
    destination: Annotated[Path, typer.Argument(help="A folder.")],
) -> None:
    """Fetch a registered generator, every file held to its SHA-256."""
    from mimic3d_platform.models.registry import pull as fetch
    from mimic3d_platform.settings import use_services

    use_services()
    Console().say(f"{uri} is in {fetch(uri, destination)}")


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(help="A generator's folder, such as an imported one.")],
    name: Annotated[str, typer.Argument(help="The model's name in the registry.")],
    alias: Annotated[str | None, typer.Option(help="Give the registered version this alias.")] = None,
) -> None:
    """Register a generator that no training here made, with a run of its own in MLflow."""
    from mimic3d_platform.models.registry import register_folder
    from mimic3d_platform.settings import use_services

    use_services()
    version = register_folder(folder, name, alias)
    Console().say(f"registered {name} version {version}" + (f" as {alias}" if alias else ""))


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A network pickle that EG3D or Mimic3D released (.pkl).")],
    destination: Annotated[Path, typer.Argument(help="The generator's folder, new or empty.")],
    generator_only: Annotated[
        bool, typer.Option("--generator-only", help="Leave out the discriminators, which only a start needs.")
    ] = False,
) -> None:
    """Bring a released checkpoint into a generator's folder; nothing in it is executed."""
    from mimic3d.checkpoints.released import import_released

    try:
        model = import_released(file, destination, generator_only=generator_only).model
    except ValueError as error:
        raise UserError(str(error)) from error
    Console().say(f"{destination}: a generator of {model.architecture} for {model.image_resolution}² images")


# What `render` and `mesh` share.
Latents = Annotated[
    Path | None, typer.Option(help="Latents of a .npy or .safetensors file, in place of seeds.")
]
Truncation = Annotated[float, typer.Option(help="1 is none, 0 the average object.")]
Cutoff = Annotated[
    int | None, typer.Option("--truncation-cutoff", help="Truncate only that many first layers.", min=0)
]
Noise = Annotated[str, typer.Option(help="Of the planes: const, random or none.")]
Branch = Annotated[str | None, typer.Option(help="2d or 3d alone.")]
Memory = Annotated[int, typer.Option(help="MiB that the samples along rays may take at a time.", min=1)]


@app.command()
def render(
    model: Model,
    destination: Annotated[Path, typer.Argument(help="A .png for a grid, an .mp4 for a video.")],
    seeds: Annotated[str, typer.Option(help="Of the latents, such as 0-5,9.")] = "0-5",
    latents: Latents = None,
    views: Annotated[
        int | None, typer.Option(help="Cameras of a grid (4), or frames of a video (48).", min=1)
    ] = None,
    cameras: Annotated[
        Path | None, typer.Option(help="A camera path, .json or .csv, in place of the orbit.")
    ] = None,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="A video that goes from latent to latent.")
    ] = False,
    depth: Annotated[
        bool, typer.Option("--depth", help="Beside each image its depth, near is white.")
    ] = False,
    branch: Branch = None,
    truncation: Truncation = 1.0,
    cutoff: Cutoff = None,
    noise: Noise = "const",
    memory: Memory = 2048,
) -> None:
    """Draw a grid or a video of a generator's branches, from seeds or latents, along an orbit or a path."""
    from mimic3d_platform.models.model_uris import load_generator
    from mimic3d_platform.models.rendering import (
        RenderOptions,
        camera_path,
        parse_seeds,
        write_grid,
        write_video,
    )

    console = Console()
    if destination.suffix not in (".png", ".mp4"):
        raise UserError(f"{destination} is neither a .png nor an .mp4: name one")
    is_video = destination.suffix == ".mp4"
    if interpolate and not is_video:
        raise UserError(f"{destination} is a picture: --interpolate makes a video, an .mp4")
    branches = (branch,) if branch else None
    options = RenderOptions(
        parse_seeds(seeds), latents, truncation, cutoff, branches, depth, noise, memory * 2**20
    )
    generator, config = load_generator(model)
    path = camera_path(config.camera, cameras, views or (48 if is_video else 4), closed=is_video)
    if is_video:
        with console.progress("filming", "frames") as advance:
            write_video(generator, config, destination, options, path, interpolate, advance)
    else:
        write_grid(generator, config, destination, options, path)
    console.say(f"wrote {destination}")


@app.command()
def mesh(
    model: Model,
    destination: Annotated[Path, typer.Argument(help="A .ply or .glb file.")],
    seed: Annotated[int, typer.Option(help="Of the latent, as in the rows of a grid.", min=0)] = 0,
    latents: Latents = None,
    resolution: Annotated[
        int, typer.Option(help="Samples along each side of the box.", min=2, max=2048)
    ] = 128,
    level: Annotated[float | None, typer.Option(help="Raw density of the surface (10).")] = None,
    largest: Annotated[bool, typer.Option("--largest", help="Keep the largest piece alone.")] = False,
    watertight: Annotated[
        bool, typer.Option("--watertight/--open", help="Whether it is closed at the box's sides.")
    ] = True,
    branch: Branch = None,
    truncation: Truncation = 1.0,
    cutoff: Cutoff = None,
    noise: Noise = "const",
    memory: Memory = 2048,
) -> None:
    """Write the coloured surface of one object."""
    from mimic3d_platform.models.model_uris import load_generator
    from mimic3d_platform.models.rendering import RenderOptions, write_mesh

    branches = (branch,) if branch else None
    options = RenderOptions(
        (seed,), latents, truncation, cutoff, branches, noise=noise, memory=memory * 2**20
    )
    generator, config = load_generator(model)
    faces = write_mesh(
        generator,
        config,
        destination,
        options,
        resolution,
        level=level,
        watertight=watertight,
        largest_only=largest,
    )
    Console().say(f"wrote {destination}: {faces} faces")
