"""`mimic3d models …`, and the short forms `mimic3d pull` and `mimic3d register` of two of them."""

from __future__ import annotations

import os
import tempfile
from typing import Annotated

import typer

from mimic3d_platform.cli.app import app
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError

models_app = typer.Typer(
    help="List, compare, promote, copy and delete registered generators.", no_args_is_help=True
)
app.add_typer(models_app, name="models")

Name = Annotated[str, typer.Argument(help="The model's name in the registry.")]
Source = Annotated[
    str,
    typer.Argument(help="A generator's folder, models:/NAME@ALIAS, models:/NAME/VERSION, or builtin:cars."),
]
Registered = Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")]
Version = Annotated[int, typer.Argument(help="The version's number.", min=1)]
Alias = Annotated[
    str | None, typer.Option(help="Also give this alias to the version, if `models promote` would.")
]
Force = Annotated[
    str | None,
    typer.Option(metavar="REASON", help="Give the alias whatever the metrics say; the reason is recorded."),
]


@app.command()
@models_app.command()
def pull(
    uri: Registered,
    destination: Annotated[str, typer.Argument(help="The folder to fetch it into: a path or s3://….")],
) -> None:
    """Fetch a registered generator and verify its files against their SHA-256; execute nothing."""
    from mimic3d_platform.models.pull import pull as fetch

    _use_services()
    console = Console()
    with console.working("downloading"):
        place = fetch(uri, destination)
    console.say(f"{uri} is in {place}")


@app.command()
@models_app.command()
def register(source: Source, name: Name, alias: Alias = None, force: Force = None) -> None:
    """Register a generator from a folder, such as an imported one, with an MLflow run of its own."""
    _register(source, name, alias, force)


@models_app.command("list")
def list_models() -> None:
    """List the models of the registry with their versions and aliases."""
    from mimic3d_platform.models.registry import registered_models, versions_of
    from mimic3d_platform.tracking.tags import RECIPE_TAG, RESOLUTION_TAG

    _use_services()
    console = Console()
    rows = []
    for model in registered_models():
        versions = versions_of(model.name)
        aliases = ", ".join(f"{alias} = {number}" for alias, number in sorted(model.aliases.items()))
        newest = versions[-1].tags if versions else {}
        what = " ".join(newest.get(tag, "") for tag in (RECIPE_TAG, RESOLUTION_TAG)).strip()
        rows.append((model.name, str(len(versions)), aliases or "-", what or "-"))
    if rows:
        console.table(("model", "versions", "aliases", "newest: recipe, pixels"), rows)
    else:
        console.say("the registry has no model; `mimic3d train … --register NAME` makes one")


@models_app.command()
def show(
    model: Annotated[str, typer.Argument(help="A model's name, models:/NAME@ALIAS or models:/NAME/VERSION.")],
) -> None:
    """Show the versions of a model, or the metrics, data, licences and origin of one version."""
    from mimic3d_platform.models.registry import is_registered

    _use_services()
    if is_registered(model):
        _show_version(model)
    else:
        _show_versions(model)


@models_app.command()
def compare(first: Registered, second: Registered) -> None:
    """Compare the metrics of two versions that were measured on the same data and number of images."""
    from mimic3d_platform.models.measurements import comparisons
    from mimic3d_platform.models.registry import version_of, version_uri

    _use_services()
    console = Console()
    versions = version_of(first), version_of(second)
    found = comparisons(*versions)
    if not found:
        raise UserError(
            f"{first} and {second} have no metric that was measured on the same data set with the same "
            "number of images: run `mimic3d evaluate` on both"
        )
    titles = ("metric", *map(version_uri, versions), "beyond the intervals")
    rows = [(it.metric, str(it.candidate), str(it.present), _verdict(it.better, it.worse)) for it in found]
    console.table(titles, rows)


@models_app.command()
def promote(
    name: Name,
    version: Version,
    alias: Annotated[str, typer.Option(help="The alias to point at the version, such as champion.")],
    metric: Annotated[
        str | None, typer.Option(help="The metric that must be better, such as fid_inception2015/3d.")
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option(help="A metric that must not be worse; repeatable; detail of views by default."),
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option(
            help="Largest time to render a view on this machine, as a multiple of the present version's.",
            min=0,
        ),
    ] = None,
    force: Force = None,
) -> None:
    """Point an alias at a version if it is measurably better than the one that has the alias."""
    from mimic3d_platform.models.gate import promote as decide

    _use_services()
    console = Console()
    decision = decide(
        name,
        version,
        alias,
        metric=metric,
        guards=guard or None,
        max_latency=max_latency,
        force=force,
        on_note=console.say,
    )
    if not decision.passed:
        raise UserError(decision.line)
    console.say(decision.line)


@models_app.command()
def push(
    source: Source,
    name: Name,
    to: Annotated[
        str, typer.Option(help="The address of the other MLflow, such as https://mlflow.example.org.")
    ],
    alias: Alias = None,
    force: Force = None,
) -> None:
    """Register a generator, with its lineage, in another MLflow.

    The login of the other MLflow is read from MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN.
    """
    from mimic3d_platform.models.pull import pull as fetch
    from mimic3d_platform.models.registry import check_registration, is_registered
    from mimic3d_platform.tracking.server import own_login

    check_registration(name, alias)
    with tempfile.TemporaryDirectory(prefix="mimic3d-push-") as folder:
        if is_registered(source):
            with own_login():
                _use_services()
                fetch(source, folder)
            source = folder
        os.environ["MLFLOW_TRACKING_URI"] = to
        _register(source, name, alias, force)


@models_app.command()
def verify(
    model: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder that was pulled.")
    ],
) -> None:
    """Verify every file of a registered version, or of a pulled folder, against its SHA-256."""
    from mimic3d_platform import storage
    from mimic3d_platform.models.pull import verify_folder, verify_version
    from mimic3d_platform.models.registry import is_registered

    _use_services()
    console = Console()
    with console.working("verifying"):
        files = verify_version(model) if is_registered(model) else verify_folder(storage.local_path(model))
    console.say(f"{model}: all {len(files)} files are those that were registered")


@models_app.command()
def delete(
    name: Name,
    version: Version,
    force: Annotated[
        bool, typer.Option("--force", help="Also if it has an alias, which goes with it.")
    ] = False,
) -> None:
    """Delete a version and its logged model."""
    from mimic3d_platform.models.registry import check_registration, delete_version

    _use_services()
    check_registration(name)
    Console().say(f"deleted version {delete_version(f'models:/{name}/{version}', force=force)} of {name}")


def _register(source: str, name: str, alias: str | None, force: str | None) -> None:
    from mimic3d_platform.models.gate import promote as decide
    from mimic3d_platform.models.model_uris import local_folder
    from mimic3d_platform.models.registration import register_folder
    from mimic3d_platform.models.registry import check_registration

    check_registration(name, alias)
    if force is not None and alias is None:
        raise UserError("--force gives a version an alias whatever its metrics: give --alias too")
    _use_services()
    console = Console()
    with console.working("registering"), local_folder(source) as folder:
        version = register_folder(folder, name)
    console.say(f"registered {name} version {version}")
    if alias:
        decision = decide(name, version, alias, force=force, on_note=console.say)
        if not decision.passed:
            raise UserError(decision.line)
        console.say(decision.line)


def _show_versions(name: str) -> None:
    from mimic3d_platform.models.registry import GENERATOR_TAG, aliases_of, versions_of
    from mimic3d_platform.tracking.tags import RECIPE_TAG

    versions, aliases = versions_of(name), aliases_of(name)
    rows = []
    for version in versions:
        number = int(version.version)
        own = ", ".join(sorted(alias for alias, of in aliases.items() if of == number))
        digest = version.tags.get(GENERATOR_TAG, "")[:12]
        rows.append((str(number), own or "-", version.tags.get(RECIPE_TAG, "-"), digest or "-"))
    Console().table(("version", "aliases", "recipe", "generator"), rows)


def _show_version(uri: str) -> None:
    from mimic3d_platform.models.measurements import measurements
    from mimic3d_platform.models.registry import aliases_of, version_of
    from mimic3d_platform.tracking import run_url

    console = Console()
    version = version_of(uri)
    number = int(version.version)
    own = sorted(alias for alias, of in aliases_of(version.name).items() if of == number)
    console.say(f"{version.name} version {number}" + (f": {', '.join(own)}" if own else ""))
    rows = [
        (name, str(found[0]), f"{found[0].measured_on.images} images")
        for name, found in sorted(measurements(version).items())
    ]
    if rows:
        console.table(("metric", "value", "generated"), rows)
    for key, value in sorted(version.tags.items()):
        console.say(f"{key} = {value}")
    if version.run_id:
        console.say(f"run: {run_url(version.run_id)}")
    console.say("")
    console.say(version.description or "")


def _verdict(better: bool, worse: bool) -> str:
    return "first is better" if better else "second is better" if worse else "no difference"


def _use_services() -> None:
    from mimic3d_platform.settings import use_services

    use_services()
