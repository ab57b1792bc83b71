"""The `mimic3d` command. Heavy imports stay inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimic3d.config import ConfigError
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    from mimic3d_platform.local import StackStatus

app = typer.Typer(
    help="Train Mimic3D: 3D objects from single posed images, drawn from any camera.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make, look at and check data sets.", no_args_is_help=True)
app.add_typer(data, name="data")

# Typer exports only children of the error that it raises for a command line it cannot read.
_UsageError = typer.BadParameter.__base__
_STOPPED = "stopped; run the same command again to go on from where it was"

Model = Annotated[str, typer.Argument(help="A generator's folder, or models:/NAME@ALIAS, models:/NAME/3.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable.")
]


@app.command()
def up(
    nodes: Annotated[int, typer.Option(help="Ray nodes on this machine.")] = 1,
    cpus: Annotated[int | None, typer.Option(help="CPUs that each Ray node hands out.")] = None,
) -> None:
    """Start object storage, MLflow and Ray on this machine, on loopback."""
    from mimic3d_platform import local

    console = Console()
    _print_stack(local.up(nodes=nodes, cpus=cpus, on_progress=console.say), console)


@app.command()
def down() -> None:
    """Stop what `mimic3d up` started; all data is kept."""
    from mimic3d_platform import local

    console = Console()
    local.down(on_progress=console.say)
    console.say("the stack is down; its data is kept")


@app.command()
def status() -> None:
    """Say what of the stack runs; the exit status is 1 when something is amiss."""
    from mimic3d_platform import local

    found = local.status()
    _print_stack(found, Console())
    raise typer.Exit(0 if found.healthy else 1)


def _print_stack(stack: StackStatus, console: Console) -> None:
    rows = [
        (service.title, "up" if service.healthy else "DOWN", service.url or "", service.detail)
        for service in stack.services.values()
    ]
    console.table(("service", "state", "where", "note"), rows)
    console.say(f"state and logs: {stack.home}")


@app.command()
def doctor() -> None:
    """Say what of Python, torch, GPU, Ray, S3, MLflow and weights works, and what to do about the rest."""
    from mimic3d_platform.doctor import diagnose

    findings = diagnose()
    rows = [(f.name, f.state, f.detail, f.remedy) for f in findings]
    Console().table(("what", "state", "found", "what to do"), rows)
    raise typer.Exit(1 if any(f.state == "missing" for f in findings) else 0)


@app.command()
def weights(
    stage: Annotated[str | None, typer.Option(help="Copy the weights there: a folder or s3://…")] = None,
    names: Annotated[list[str] | None, typer.Argument(help="Networks; those in use when none.")] = None,
) -> None:
    """Show the feature networks of losses and metrics, or stage them for clusters without internet."""
    from mimic3d_platform import weights as store

    console = Console()
    if stage is None and not names:
        rows = [
            (
                w.name,
                w.purpose,
                "stand-in" if w.stand_in else "the real one",
                "ready" if w.ready else "",
                w.source,
            )
            for w in store.describe()
        ]
        console.table(("network", "for", "kind", "where"), rows)
        return
    wanted = names or [store.best_available(purpose, console.say) for purpose in ("perceptual", "frechet")]
    if stage is None:
        for name in wanted:
            console.say(f"{name}: {store.resolve(name, console.say)}")
        return
    for place in store.stage(wanted, stage, console.say):
        console.say(f"staged {place}; set MIMIC3D_WEIGHTS={stage} where they are to be used")


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


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a config file (YAML).")],
    data: Annotated[str | None, typer.Option(help="The data set's folder: s3://… or a path.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's name; the recipe's when not given.")] = None,
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray Train workers; all GPUs or CPUs by default.")
    ] = None,
    runs: Annotated[str | None, typer.Option(help="The folder of all runs: s3://… or a path.")] = None,
    register: Annotated[str | None, typer.Option(help="Register the generator under this name.")] = None,
    alias: Annotated[str | None, typer.Option(help="Give the registered version this alias.")] = None,
) -> None:
    """Train both stages of a recipe on Ray Train; the same name goes on where it was."""
    from mimic3d_platform.launch import resolve_config

    # A mistake in it is told at once, before PyTorch is loaded.
    config = resolve_config(recipe, data, overrides or [])
    from mimic3d_platform.jobs import train_and_register

    console = Console()
    finished = train_and_register(
        config, name or config.recipe, console, runs_uri=runs, workers=workers, model=register, alias=alias
    )
    console.metrics(finished.result.metrics)


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


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where pictures and the summary go.")] = Path("demo"),
    overrides: Overrides = None,
) -> None:
    """Run the main job on this machine: render cars, train both stages, register, pull, draw."""
    from mimic3d_platform.demo import run_demo

    run_demo(folder, Console(), overrides or [])


def main() -> None:
    """The entry point: what a user can mend is one line and status 2; nothing is ever a traceback."""
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error), 2)
    except _UsageError as error:
        if len(sys.argv) == 1 or type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            sys.exit(2)
        _fail(f"{error.format_message().rstrip('.')}; see `{error.ctx.command_path} --help`", 2)
    except ConfigError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail(_STOPPED, 130)
    except BrokenPipeError:
        os._exit(0)
    except ValueError as error:  # the method's own errors, made for users
        _fail(str(error), 2, error)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error}", 1, error)
    if status == 130:  # Typer turns Ctrl-C into this status.
        _fail(_STOPPED, 130)
    sys.exit(status)


def _fail(message: str, status: int, error: Exception | None = None) -> None:
    line = " ".join(message.split())
    if error is not None:
        line += f" (details: {_write_details(error)})"
    print(f"error: {line}", file=sys.stderr)
    sys.stdout.flush()
    # Ray's and MLflow's threads may still be waiting for a server that is gone.
    os._exit(status) if status != 2 else sys.exit(status)


def _write_details(error: Exception) -> str:
    from mimic3d_platform.settings import default_home

    path = default_home() / "last-error.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.write_text("".join(traceback.format_exception(error)))
    except OSError as problem:
        return f"not written, {problem}"
    return str(path)
