"""`mimic3d runs …` and `mimic3d recipes`: what was trained, and what can be."""

from __future__ import annotations

from typing import Annotated

import typer

from mimic3d_platform.cli.app import app
from mimic3d_platform.console import Console

runs = typer.Typer(help="List the trainings in a folder of runs.", no_args_is_help=True)
app.add_typer(runs, name="runs")


@runs.command("list")
def runs_list(
    uri: Annotated[
        str | None,
        typer.Argument(help="The folder of all runs: s3://… or a path; s3://mimic3d/runs by default."),
    ] = None,
) -> None:
    """List runs: recipe, images consumed at the newest checkpoint, state, data set."""
    from mimic3d_platform.settings import DEFAULT_RUNS_URI, use_services
    from mimic3d_platform.training.list_runs import list_runs

    use_services()
    place = uri or DEFAULT_RUNS_URI
    found = list_runs(place)
    console = Console()
    if not found:
        console.say(f"no runs below {place}: `mimic3d train` starts one")
        return
    rows = [
        (
            run.name,
            run.recipe,
            f"{run.nimg} of {run.total_nimg}" if run.total_nimg else str(run.nimg),
            run.state,
            ", ".join(f"{name} {value:.4g}" for name, value in sorted(run.metrics.items()))[:80],
            run.data,
        )
        for run in found
    ]
    console.table(("run", "recipe", "images", "state", "metrics", "data"), rows)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, whose whole config is printed.")] = None,
) -> None:
    """List the recipes, or print one as a config file that `mimic3d train` takes."""
    from mimic3d.config import config_to_yaml
    from mimic3d.config.recipes import RECIPES, get_recipe

    if name is not None:
        typer.echo(config_to_yaml(get_recipe(name)), nl=False)
        return
    rows = []
    for known, make in RECIPES.items():
        config = make()
        stages = f"{config.schedule.stage1_kimg:g} + {config.schedule.stage2_kimg:g}"
        resolution = config.model.image_resolution
        about = (make.__doc__ or "").partition("\n")[0]
        rows.append((known, f"{resolution}×{resolution}", stages, str(config.schedule.batch), about))
    Console().table(("recipe", "images", "kimg of stage 1 + 2", "batch", "what it is"), rows)
