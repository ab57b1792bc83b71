"""`mimic3d data …`: data sets in, out and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimic3d_platform.cli.app import app
from mimic3d_platform.console import Console

data = typer.Typer(help="Make, look at and check data sets.", no_args_is_help=True)
app.add_typer(data, name="data")


@data.command("render")
def data_render(
    destination: Annotated[str, typer.Argument(help="The data set's folder: s3://… or a path.")],
    resolution: Annotated[int, typer.Option(help="Pixels a side.")] = 32,
    models: Annotated[int | None, typer.Option(help="How many of the models; all when not given.")] = None,
    colourings: Annotated[int, typer.Option(help="Colourings of each model.")] = 16,
    views: Annotated[int, typer.Option(help="Views of each colouring.")] = 12,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    meshes: Annotated[
        Path | None, typer.Option(help="A folder of OBJ, GLB or PLY; Debian's cars when not given.")
    ] = None,
    supersample: Annotated[int, typer.Option(help="S, for S x S rays a pixel.")] = 4,
    focal: Annotated[
        float, typer.Option(help="Focal length in image widths; 1.4 fills the image with a car.")
    ] = 1.0254,
    overwrite: Annotated[bool, typer.Option(help="Replace another data set there.")] = False,
) -> None:
    """Render a posed data set from meshes by ray casting, in parallel on Ray."""
    from mimic3d_platform.data.render import render_dataset

    console = Console()
    with console.progress("rendering", "images") as advance:
        manifest = render_dataset(
            destination,
            resolution,
            models=models,
            colourings=colourings,
            views=views,
            seed=seed,
            meshes=meshes,
            supersample=supersample,
            focal=focal,
            overwrite=overwrite,
            on_progress=advance,
        )
    console.say(f"{destination}: {manifest.count} images of {manifest.identities} identities")


@data.command("inspect")
def data_inspect(
    uri: Annotated[str, typer.Argument(help="The data set's folder.")],
    sheet: Annotated[str | None, typer.Option(help="Write a contact sheet there (PNG).")] = None,
) -> None:
    """Show a data set's numbers, and a contact sheet on request."""
    import json

    from mimic3d_platform.data.inspect import inspect_dataset

    typer.echo(json.dumps(inspect_dataset(uri, sheet), indent=2))
