"""`mimic3d sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimic3d_platform.cli.app import Overrides, app
from mimic3d_platform.console import Console


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep file, such as sweeps/imitation.yaml.")],
    data: Annotated[str | None, typer.Option(help="The data set's folder: s3://… or a path.")] = None,
    name: Annotated[str | None, typer.Option(help="The sweep's name; the file's when not given.")] = None,
    overrides: Overrides = None,
    runs: Annotated[str | None, typer.Option(help="The folder of all runs: s3://… or a path.")] = None,
    report: Annotated[Path | None, typer.Option(help="Where the report goes; sweeps-out/NAME.")] = None,
) -> None:
    """Try many settings on Ray Tune and report which are best; the same name resumes."""
    from mimic3d_platform.tuning.sweep_file import load_sweep

    # A mistake in the file is reported at once, before PyTorch is loaded.
    loaded = load_sweep(file, data, overrides or [])
    from mimic3d_platform.tuning.report import PAGE, WINNER, table
    from mimic3d_platform.tuning.run_sweep import run_sweep

    console = Console()
    result = run_sweep(loaded, name or file.stem, console, runs_uri=runs, report=report)
    console.table(*table(result.sweep, [*result.best, *(t for t in result.trials if t not in result.best)]))
    console.say(
        f"report: {result.report / PAGE}; the best: mimic3d train {result.report / WINNER} --name NAME"
    )
