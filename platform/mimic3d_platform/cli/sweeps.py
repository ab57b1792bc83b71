"""`mimic3d sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimic3d_platform.cli.app import Data, Extend, Overrides, Runs, SweepFile, SweepName, app
from mimic3d_platform.console import Console


@app.command()
def sweep(
    file: SweepFile,
    data: Data = None,
    name: SweepName = None,
    overrides: Overrides = None,
    runs: Runs = None,
    extend: Extend = False,
    report: Annotated[
        str | None, typer.Option(help="The report's folder on this machine; sweeps-out/NAME by default.")
    ] = None,
) -> None:
    """Train the trials of a sweep file on Ray Tune and rank them; a sweep with the same name resumes."""
    from mimic3d_platform import storage
    from mimic3d_platform.tuning.sweep_file import load_sweep

    folder = storage.local_path(report) if report is not None else None
    # Before the imports below, which load PyTorch: a mistake in the file is reported within a second.
    loaded = load_sweep(file, data, overrides or [])
    from mimic3d_platform.tuning.report import PAGE, WINNER, table
    from mimic3d_platform.tuning.run_sweep import run_sweep

    console = Console()
    result = run_sweep(loaded, name or Path(file).stem, console, runs_uri=runs, report=folder, extend=extend)
    console.table(*table(result.sweep, [*result.best, *(t for t in result.trials if t not in result.best)]))
    console.say(
        f"report: {result.report / PAGE}; the best: mimic3d train {result.report / WINNER} --name NAME"
    )
