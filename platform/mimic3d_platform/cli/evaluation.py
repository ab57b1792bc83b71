"""`mimic3d evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from mimic3d_platform.cli.app import Model, app
from mimic3d_platform.console import Console


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        str | None, typer.Option(help="The data set's folder; that of the generator's training by default.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Generated images for the Fréchet distance; by default as in its config.", min=2),
    ] = None,
    identities: Annotated[
        int | None,
        typer.Option(help="Identities whose views are compared; by default as in its config.", min=1),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray Train workers; all GPUs, else all CPUs, by default.", min=1)
    ] = None,
) -> None:
    """Measure both branches of a generator against a data set; also logs the metrics to MLflow."""
    from mimic3d_platform.evaluation.evaluate import evaluate as measure
    from mimic3d_platform.settings import use_services
    from mimic3d_platform.tracking import run_url

    use_services()
    console = Console()
    console.say(f"measuring {model}")
    measured = measure(model, data, images=images, identities=identities, workers=workers)
    console.table(("metric", "value"), [(k, f"{v:.4g}") for k, v in sorted(measured.metrics.items())])
    console.say(f"MLflow: {run_url(measured.run_id)}")
