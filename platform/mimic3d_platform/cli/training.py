"""`mimic3d train` and `mimic3d demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from mimic3d_platform.cli.app import (
    Alias,
    Data,
    Extend,
    Overrides,
    Recipe,
    Register,
    RunName,
    Runs,
    Workers,
    app,
)
from mimic3d_platform.console import Console


@app.command()
def train(
    recipe: Recipe,
    data: Data = None,
    name: RunName = None,
    overrides: Overrides = None,
    workers: Workers = None,
    runs: Runs = None,
    register: Register = None,
    alias: Alias = None,
    extend: Extend = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print config, workers, and estimated memory and time; start nothing."
        ),
    ] = False,
) -> None:
    """Train both stages of a recipe on Ray Train; a run with the same name resumes."""
    from mimic3d_platform.training.config_from_command import resolve_config

    # Before the imports below, which load PyTorch: a mistake in the config is reported within a second.
    config = resolve_config(recipe, data, overrides or [])
    from mimic3d_platform.cluster.resources import parse_workers
    from mimic3d_platform.training.train_and_register import train_and_register

    count = parse_workers(workers)
    console = Console()
    if dry_run:
        from mimic3d_platform.training.dry_run import print_dry_run

        print_dry_run(config, name or config.recipe, count, console, register, alias)
        return
    finished = train_and_register(
        config,
        name or config.recipe,
        console,
        runs_uri=runs,
        workers=count,
        extend=extend,
        model=register,
        alias=alias,
    )
    console.metrics(finished.result.metrics)


@app.command()
def demo(
    folder: Annotated[
        str, typer.Option(help="The folder on this machine for the images, the mesh and the summary.")
    ] = "demo",
    overrides: Overrides = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train `cars-demo` from random weights, at 32×32.")
    ] = False,
) -> None:
    """Run the whole workflow on this machine: render cars, train both stages, register, pull, render."""
    from mimic3d_platform.cli.demo import run_demo
    from mimic3d_platform.storage import local_path

    run_demo(local_path(folder), Console(), overrides or [], from_scratch=from_scratch)
