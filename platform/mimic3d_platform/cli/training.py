"""`mimic3d train` and `mimic3d demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimic3d_platform.cli.app import Overrides, app
from mimic3d_platform.console import Console


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a config file (YAML).")],
    data: Annotated[str | None, typer.Option(help="The data set's folder: s3://… or a path.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's name; the recipe's when not given.")] = None,
    overrides: Overrides = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Ray Train workers: a number, or LEAST:MOST; all GPUs or CPUs by default."),
    ] = None,
    runs: Annotated[str | None, typer.Option(help="The folder of all runs: s3://… or a path.")] = None,
    register: Annotated[str | None, typer.Option(help="Register the generator under this name.")] = None,
    alias: Annotated[str | None, typer.Option(help="Give the registered version this alias.")] = None,
) -> None:
    """Train both stages of a recipe on Ray Train; the same name goes on where it was."""
    from mimic3d_platform.training.resolve_config import resolve_config

    # A mistake in it is told at once, before PyTorch is loaded.
    config = resolve_config(recipe, data, overrides or [])
    from mimic3d_platform.cluster.resources import parse_workers
    from mimic3d_platform.training.register_run import train_and_register

    count = parse_workers(workers)
    console = Console()
    finished = train_and_register(
        config, name or config.recipe, console, runs_uri=runs, workers=count, model=register, alias=alias
    )
    console.metrics(finished.result.metrics)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where pictures and the summary go.")] = Path("demo"),
    overrides: Overrides = None,
) -> None:
    """Run the main job on this machine: render cars, train both stages, register, pull, draw."""
    from mimic3d_platform.cli.demo import run_demo

    run_demo(folder, Console(), overrides or [])
