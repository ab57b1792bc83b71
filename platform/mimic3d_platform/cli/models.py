"""`mimic3d pull`, `import-checkpoint`, `render`, `mesh`: what becomes of a generator."""

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
    from mimic3d_platform.registry import pull as fetch
    from mimic3d_platform.settings import use_services

    use_services()
    Console().say(f"{uri} is in {fetch(uri, destination)}")


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A network pickle that EG3D or Mimic3D released (.pkl).")],
    destination: Annotated[Path, typer.Argument(help="The generator's folder, which must not exist yet.")],
) -> None:
    """Bring a released checkpoint into a generator's folder; nothing in it is executed."""
    from mimic3d.checkpoints.released import import_released

    model = import_released(file, destination).model
    Console().say(f"{destination}: a generator of {model.architecture} for {model.image_resolution}² images")


@app.command()
def render(
    model: Model,
    destination: Annotated[Path, typer.Argument(help="A .png for a grid, an .mp4 for an orbit.")],
    identities: Annotated[int, typer.Option(help="How many latents.", min=1)] = 6,
    seed: Annotated[int, typer.Option(help="Of the latents.")] = 0,
    views: Annotated[
        int | None, typer.Option(help="Cameras of a grid (4), or frames of a video (48).", min=1)
    ] = None,
    truncation: Annotated[float, typer.Option(help="1 is none, 0 the average object.")] = 1.0,
) -> None:
    """Draw a grid or an orbit video of both branches from a generator."""
    from mimic3d_platform.drawing import draw_grid, draw_orbit, open_generator

    console = Console()
    if destination.suffix not in (".png", ".mp4"):
        raise UserError(f"{destination} is neither a .png nor an .mp4: name one")
    with open_generator(model) as (generator, config):
        if destination.suffix == ".png":
            draw_grid(generator, config, destination, identities, seed, views or 4, truncation)
        else:
            with console.progress("filming", "frames") as advance:
                draw_orbit(generator, config, destination, identities, seed, views or 48, truncation, advance)
    console.say(f"wrote {destination}")


@app.command()
def mesh(
    model: Model,
    destination: Annotated[Path, typer.Argument(help="A .ply or .glb file.")],
    seed: Annotated[int, typer.Option(help="Of the latent.")] = 0,
    resolution: Annotated[int, typer.Option(help="Samples along each side of the box.", min=2)] = 128,
    truncation: Annotated[float, typer.Option(help="1 is none, 0 the average object.")] = 1.0,
) -> None:
    """Write the coloured surface of one object."""
    from mimic3d_platform.drawing import draw_mesh, open_generator

    with open_generator(model) as (generator, config):
        faces = draw_mesh(generator, config, destination, seed, resolution, truncation)
    Console().say(f"wrote {destination}: {faces} faces")
