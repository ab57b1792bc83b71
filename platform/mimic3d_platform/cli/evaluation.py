"""`mimic3d evaluate` and `mimic3d compare`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mimic3d_platform.cli.app import app
from mimic3d_platform.console import Console

if TYPE_CHECKING:
    from mimic3d_platform.evaluation.evaluate import Evaluation, Options

_WHAT = (
    "a generator (its folder, a checkpoint, a run's folder, models:/NAME@ALIAS, builtin:cars) or images (a "
    "folder, a zip, a data set)"
)
Images = Annotated[
    int | None,
    typer.Option(
        help="Images for the metrics of fidelity; by default as in the generator's config, or all images.",
        min=2,
    ),
]
Identities = Annotated[
    int | None,
    typer.Option(help="Objects whose views are compared; by default as in the generator's config.", min=1),
]
Views = Annotated[int, typer.Option(help="Views of each object.", min=3)]
Fields = Annotated[
    bool,
    typer.Option(
        "--fields/--no-fields",
        help="Fit radiance fields to the views: about half a minute of a CPU for each object and branch.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of latents, cameras and the order of images.", min=0)]
Network = Annotated[
    str | None,
    typer.Option(help="The feature network, as `mimic3d weights` lists it; the best available by default."),
]
Workers = Annotated[
    int | None, typer.Option(help="Ray tasks at a time; by default one for each GPU, or each CPU.", min=1)
]
Truncation = Annotated[
    bool,
    typer.Option("--truncation", help="Also measure fidelity over truncation, for the report's curves."),
]
Meshes = Annotated[
    str | None,
    typer.Option(
        help="Also compare shapes with the meshes that the data set was rendered from: a folder, or `cars` "
        "for Debian's."
    ),
]
Faces = Annotated[
    bool,
    typer.Option(
        "--faces",
        help="Also measure the identity, pose and depth of faces, by dlib: pip install 'mimic3d[faces]'.",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(help="The data set of real images; that of the generator's training by default."),
]
Out = Annotated[
    str | None, typer.Option("--json", help="Also write the metrics to this JSON file: s3://… or a path.")
]
Report = Annotated[
    str | None,
    typer.Option(help="Also write a report, an HTML page that needs no network: s3://… or a path."),
]


@app.command()
def evaluate(
    subject: Annotated[str, typer.Argument(help=f"What to measure: {_WHAT}.")],
    data: DataOption = None,
    images: Images = None,
    identities: Identities = None,
    views: Views = 30,
    fields: Fields = True,
    seed: Seed = 0,
    network: Network = None,
    workers: Workers = None,
    truncation: Truncation = False,
    meshes: Meshes = None,
    faces: Faces = False,
    out: Out = None,
    report: Report = None,
) -> None:
    """Measure a generator or images against a data set, and log the metrics to MLflow."""
    from mimic3d_platform.evaluation.evaluate import Options

    console = Console()
    options = Options(images, identities, views, network, fields, seed, workers, truncation, meshes, faces)
    found = _measure(subject, data, options, console)
    header = ("metric", "value", "95 % interval", "of", "note")
    console.table(header, found.measured.rows())
    _say_run(found, console)
    _write([found], out, report)


@app.command()
def compare(
    subjects: Annotated[list[str], typer.Argument(help=f"What to measure, two or more: {_WHAT}.")],
    data: DataOption = None,
    images: Images = None,
    identities: Identities = None,
    views: Views = 30,
    fields: Fields = True,
    seed: Seed = 0,
    network: Network = None,
    workers: Workers = None,
    truncation: Truncation = False,
    meshes: Meshes = None,
    faces: Faces = False,
    out: Out = None,
    report: Report = None,
) -> None:
    """Measure several generators or sets of images in the same way, and print one table."""
    from mimic3d_platform.errors import UserError
    from mimic3d_platform.evaluation.evaluate import Options
    from mimic3d_platform.evaluation.measured import comparison

    if len(subjects) < 2:
        raise UserError(f"compare needs two subjects or more, and got {subjects[0]}: use `mimic3d evaluate`")
    console = Console()
    options = Options(images, identities, views, network, fields, seed, workers, truncation, meshes, faces)
    found = [_measure(subject, data, options, console) for subject in subjects]
    console.table(*comparison([each.measured for each in found]))
    for each in found:
        _say_run(each, console)
    _write(found, out, report)


def _measure(subject: str, data: str | None, options: Options, console: Console) -> Evaluation:
    from mimic3d_platform.evaluation.evaluate import evaluate as measure
    from mimic3d_platform.settings import use_services

    use_services()
    console.say(f"measuring {subject}")
    with console.progress("measured", "pieces") as advance:
        return measure(subject, data, options, on_progress=advance)


def _say_run(found: Evaluation, console: Console) -> None:
    from mimic3d_platform.tracking import run_url

    console.say(f"{found.measured.subject}: MLflow: {run_url(found.run_id)}")


def _write(found: list[Evaluation], out: str | None, report: str | None) -> None:
    from mimic3d_platform import storage
    from mimic3d_platform.evaluation.report import report_page

    if out is not None:
        content = json.dumps([asdict(each.measured) for each in found], indent=1, ensure_ascii=False)
        storage.write_bytes(out, content.encode() + b"\n")
    if report is not None:
        storage.write_bytes(report, report_page([each.report for each in found]).encode())
