"""`mimic3d runs …` and `mimic3d recipes`: what was trained, and what can be."""

from __future__ import annotations

from typing import Annotated

import typer

from mimic3d_platform.cli.app import Runs, app
from mimic3d_platform.console import Console

runs = typer.Typer(help="List, show, compare and delete runs, which are trainings.", no_args_is_help=True)
app.add_typer(runs, name="runs")

RunArgument = Annotated[str, typer.Argument(help="The run's name.")]


@runs.command("list")
def runs_list(
    uri: Annotated[
        str | None,
        typer.Argument(help="The folder of all runs: s3://… or a path; s3://mimic3d/runs by default."),
    ] = None,
) -> None:
    """List runs: recipe, images consumed at the newest checkpoint, state, metrics, data set."""
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


@runs.command("show")
def runs_show(name: RunArgument, runs: Runs = None) -> None:
    """Print a run: its differences from the recipe, data set, checkpoints, extensions and metrics."""
    from mimic3d.config import flatten, to_dict
    from mimic3d.config.recipes import RECIPES, get_recipe
    from mimic3d_platform import storage
    from mimic3d_platform.models.checkpoints import CheckpointStore
    from mimic3d_platform.settings import DEFAULT_RUNS_URI, use_services
    from mimic3d_platform.training.extension import read_extensions
    from mimic3d_platform.training.result import read_result
    from mimic3d_platform.training.run_identity import read_config, read_origin

    use_services()
    place, console = runs or DEFAULT_RUNS_URI, Console()
    config = read_config(place, name)
    origin, result = read_origin(place, name), read_result(place, name)
    console.say(f"run: {storage.join(place, name)}, {'finished' if result else 'not finished'}")
    console.say(f"recipe: {config.recipe}, {config.total_nimg} images, seed {config.seed}")
    console.say(f"data set: {config.data.uri}" + (f", fingerprint {origin.data[:12]}" if origin else ""))
    if config.start:
        console.say(f"start: {config.start}")
    for extension in read_extensions(place, name):
        console.say(f"extended: {extension.kimg:g} -> {extension.to_kimg:g} kimg at {extension.date}")
    if result:
        console.say(f"MLflow run: {result.run_id}")
    known = flatten(to_dict(get_recipe(config.recipe))) if config.recipe in RECIPES else {}
    changes = [
        (key, str(known.get(key)), str(value))
        for key, value in flatten(to_dict(config)).items()
        if known and known.get(key) != value and key != "data.uri"
    ]
    if changes:
        console.table(("key", config.recipe, "this run"), changes)
    checkpoints = CheckpointStore(place, name).all()
    if checkpoints:
        sizes = [sum(storage.file_sizes(each.uri).values()) for each in checkpoints]
        rows = [
            (each.name, str(each.nimg), f"{size / 1e6:.1f} MB")
            for each, size in zip(checkpoints, sizes, strict=True)
        ]
        console.table(("checkpoint", "images", "size"), rows)
    if result:
        console.metrics(result.metrics)


@runs.command("compare")
def runs_compare(
    names: Annotated[list[str], typer.Argument(help="Names of two or more runs.")],
    runs: Runs = None,
) -> None:
    """Print the keys in which runs differ, and the last metrics of each."""
    from mimic3d.config import flatten, to_dict
    from mimic3d_platform.errors import UserError
    from mimic3d_platform.settings import DEFAULT_RUNS_URI, use_services
    from mimic3d_platform.training.result import read_result
    from mimic3d_platform.training.run_identity import read_config

    if len(names) < 2:
        raise UserError("name two runs or more to compare")
    use_services()
    place, console = runs or DEFAULT_RUNS_URI, Console()
    configs = [flatten(to_dict(read_config(place, name))) for name in names]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [
        (key, *(str(config.get(key)) for config in configs))
        for key in keys
        if len({str(config.get(key)) for config in configs}) > 1
    ]
    results = [read_result(place, name) for name in names]
    measured = [found.last_measurement()[1] if found else {} for found in results]
    metrics = sorted({metric for each in measured for metric in each})
    rows += [
        (metric, *(f"{each[metric]:.4g}" if metric in each else "–" for each in measured))
        for metric in metrics
    ]
    if not rows:
        console.say("the runs have the same config, and none of them has metrics")
        return
    console.table(("", *names), rows)


@runs.command("delete")
def runs_delete(
    name: RunArgument,
    runs: Runs = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also if a model, another run or a sweep needs it.")
    ] = False,
) -> None:
    """Delete a run's folder; MLflow keeps its record, and registered models stay."""
    from mimic3d_platform.settings import DEFAULT_RUNS_URI, use_services
    from mimic3d_platform.training.delete import delete_run

    use_services()
    place = runs or DEFAULT_RUNS_URI
    delete_run(place, name, force=force)
    Console().say(f"deleted the run {name} in {place}")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="The recipe to print, with all its keys.")] = None,
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
        # Not the schedule's stage 2, which EG3D leaves out.
        stage2_nimg = config.total_nimg - config.stage1_nimg
        stages = f"{config.stage1_nimg / 1000:g} + {stage2_nimg / 1000:g}"
        resolution = config.model.image_resolution
        about = (make.__doc__ or "").partition("\n")[0]
        rows.append((known, f"{resolution}×{resolution}", stages, str(config.schedule.batch), about))
    Console().table(("recipe", "images", "kimg of stage 1 + 2", "batch", "what it is"), rows)
