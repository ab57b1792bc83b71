"""`mimic3d data …`: render, ingest, export, inspect and verify data sets."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

import typer

from mimic3d_platform.cli.app import Runs, app
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError

data = typer.Typer(
    help="Render, ingest, export, list, inspect, verify and delete data sets.", no_args_is_help=True
)
app.add_typer(data, name="data")


@data.command("render")
def data_render(
    destination: Annotated[str, typer.Argument(help="The data set's folder: s3://… or a path.")],
    resolution: Annotated[int, typer.Option(help="Pixels along each side of an image.")] = 32,
    models: Annotated[int | None, typer.Option(help="Number of models to render; all by default.")] = None,
    colourings: Annotated[
        int | None,
        typer.Option(
            help="Number of times that each model is repainted. By default, models of --meshes keep their "
            "colours, and Debian's cars are repainted 16 times.",
            show_default=False,
        ),
    ] = None,
    views: Annotated[int, typer.Option(help="Views of each model, in each of its colourings.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of colours and cameras.")] = 0,
    meshes: Annotated[
        str | None,
        typer.Option(
            help="A folder of OBJ, GLB, glTF or PLY files: s3://… or a path; Debian's cars by default."
        ),
    ] = None,
    supersample: Annotated[int, typer.Option(help="S: each pixel is the mean of S × S rays.")] = 4,
    focal: Annotated[
        float, typer.Option(help="Focal length in image widths; 1.6 fills the image with a car.")
    ] = 1.0254,
    overwrite: Annotated[bool, typer.Option(help="Replace a data set at the destination.")] = False,
) -> None:
    """Render a posed data set from meshes by ray casting, in parallel on Ray."""
    from mimic3d_platform import storage
    from mimic3d_platform.data.render.render_dataset import render_dataset

    console = Console()
    source = storage.read_locally(meshes) if meshes is not None else contextlib.nullcontext()
    with source as folder, console.progress("rendering", "images") as advance:
        manifest = render_dataset(
            destination,
            resolution,
            models=models,
            colourings=colourings,
            views=views,
            seed=seed,
            meshes=folder,
            supersample=supersample,
            focal=focal,
            overwrite=overwrite,
            on_progress=advance,
        )
    console.say(f"{destination}: {manifest.count} images of {manifest.identities} identities")


@data.command("ingest")
def data_ingest(
    source: Annotated[str, typer.Argument(help="A folder or zip of posed images: s3://… or a path.")],
    destination: Annotated[str, typer.Argument(help="The data set's folder: s3://… or a path.")],
    form: Annotated[
        str | None, typer.Option(help="eg3d, nerf, colmap or table; detected by default.")
    ] = None,
    cameras: Annotated[
        str | None, typer.Option(help="Path of the camera file within the source, if it has another name.")
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(help="Crop a centred square: its side in pixels, or `square` for the largest."),
    ] = None,
    resize: Annotated[
        int | None, typer.Option(help="Resize images to this many pixels along each side.")
    ] = None,
    background: Annotated[
        str | None, typer.Option(help="white or black: the colour behind transparent pixels.")
    ] = None,
    mirror: Annotated[
        bool, typer.Option(help="Add a mirrored copy of each image, with a mirrored camera.")
    ] = False,
    balance: Annotated[
        bool, typer.Option(help="Add sampling weights that make all camera directions equally frequent.")
    ] = False,
    up: Annotated[
        str, typer.Option(help="The source's up axis: y, -y, z, -z, x or -x; it is rotated to y.")
    ] = "y",
    centre: Annotated[
        str | None,
        typer.Option(
            help="The point that becomes the origin: X,Y,Z, or auto for the one that the cameras look at."
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(help="A factor for all distances, or auto for a scene that fits a box of side 1."),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(help="folder: the images of a folder show one object; image: each shows another."),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(help="Skip and count images that are broken, of another size, or without a camera."),
    ] = False,
    licence: Annotated[str | None, typer.Option(help="The images' licence, for the data card.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a data set at the destination.")] = False,
    local: Annotated[bool, typer.Option(help="Run in this process, without Ray.")] = False,
) -> None:
    """Make a data set from posed images: an EG3D zip or folder, NeRF transforms, a COLMAP model, a table.

    Runs on Ray if a cluster is named or `mimic3d up` has started one, else in this process.
    """
    from mimic3d_platform.data.ingest.image_edits import parse_crop
    from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset
    from mimic3d_platform.settings import use_services

    if identity not in (None, "folder", "image"):
        raise UserError(f"--identity {identity}: give folder or image")
    console = Console()
    with console.progress("reading", "images") as advance:
        manifest = ingest_dataset(
            source,
            destination,
            form=form,
            cameras_file=cameras,
            crop=parse_crop(crop),
            resize=resize,
            background=background,
            mirror=mirror,
            balance=balance,
            up=up,
            centre=centre,
            scale=scale,
            by_folder=None if identity is None else identity == "folder",
            partial=partial,
            licence=licence,
            overwrite=overwrite,
            here=local or not use_services().ray_address,
            on_progress=advance,
        )
    console.say(
        f"{destination}: {manifest.count} images of {manifest.resolution}×{manifest.resolution}, "
        f"{manifest.identities} identities"
    )
    if left_out := manifest.provenance.get("left_out_count"):
        first = manifest.provenance["left_out"][0]
        console.say(
            f"skipped {left_out} that lack an image or a camera, are broken, or differ in size from the "
            f"first image; the first skipped is {first}"
        )


@data.command("export")
def data_export(
    uri: Annotated[str, typer.Argument(help="The data set's folder.")],
    destination: Annotated[str, typer.Argument(help="The zip to write: s3://… or a path.")],
    overwrite: Annotated[bool, typer.Option(help="Replace a file at the destination.")] = False,
) -> None:
    """Write a data set as a zip file that EG3D's own tools read."""
    from mimic3d_platform.data.export_eg3d import export_dataset

    console = Console()
    with console.progress("writing", "images") as advance:
        count = export_dataset(uri, destination, overwrite=overwrite, on_progress=advance)
    console.say(f"{destination}: {count} images and dataset.json")


@data.command("list")
def data_list(
    uri: Annotated[
        str, typer.Argument(help="The folder to look in: s3://… or a path.")
    ] = "s3://mimic3d/data",
) -> None:
    """List the data sets in a folder and in its subfolders."""
    from mimic3d_platform.data.format.list_datasets import list_datasets
    from mimic3d_platform.settings import use_services

    use_services()
    found = list_datasets(uri)
    console = Console()
    if not found:
        console.say(f"no data sets below {uri}: make one with `mimic3d data render` or `mimic3d data ingest`")
        return
    rows = [
        (each.uri, "", "", "", "", each.problem)
        if (manifest := each.manifest) is None
        else (
            each.uri,
            str(manifest.count),
            f"{manifest.resolution}×{manifest.resolution}",
            str(manifest.identities),
            f"{sum(shard.bytes for shard in manifest.shards) / 1e6:.1f} MB",
            "",
        )
        for each in found
    ]
    console.table(("data set", "images", "resolution", "identities", "size", "note"), rows)


@data.command("delete")
def data_delete(
    uri: Annotated[str, typer.Argument(help="The data set: s3://… or a path.")],
    runs: Runs = None,
    force: Annotated[bool, typer.Option("--force", help="Also if a run was trained on it.")] = False,
) -> None:
    """Delete a data set that no run needs."""
    from mimic3d_platform.settings import DEFAULT_RUNS_URI, use_services
    from mimic3d_platform.training.delete import delete_dataset

    use_services()
    delete_dataset(uri, runs or DEFAULT_RUNS_URI, force=force)
    Console().say(f"deleted the data set {uri}")


@data.command("inspect")
def data_inspect(
    uri: Annotated[str, typer.Argument(help="The data set's folder.")],
    sheet: Annotated[str | None, typer.Option(help="Write a contact sheet to this PNG file.")] = None,
    cameras: Annotated[str | None, typer.Option(help="Write a plot of the cameras to this PNG file.")] = None,
    duplicates: Annotated[
        bool, typer.Option(help="Read every image and report duplicates and near duplicates.")
    ] = False,
    local: Annotated[bool, typer.Option(help="Run in this process, without Ray.")] = False,
) -> None:
    """Print a data set's statistics as JSON; on request write a contact sheet and a plot of its cameras."""
    from mimic3d_platform.data.inspect.inspect_dataset import inspect_dataset
    from mimic3d_platform.settings import use_services

    here = local or not use_services().ray_address
    # The output itself is JSON, perhaps for another program.
    with Console(stderr=True).progress("reading", "images") as advance:
        found = inspect_dataset(
            uri, sheet, cameras_png=cameras, duplicates=duplicates, here=here, on_progress=advance
        )
    typer.echo(json.dumps(found, indent=2))
    for written in filter(None, (sheet, cameras)):
        typer.echo(f"wrote {written}", err=True)  # The output itself stays JSON.


@data.command("card")
def data_card(uri: Annotated[str, typer.Argument(help="The data set's folder.")]) -> None:
    """Print a data set's card (Markdown): provenance, authors, licences."""
    from mimic3d_platform.data.format.manifest_file import read_card

    typer.echo(read_card(uri).decode())


@data.command("verify")
def data_verify(
    uri: Annotated[str, typer.Argument(help="The data set's folder.")],
    local: Annotated[bool, typer.Option(help="Run in this process, without Ray.")] = False,
) -> None:
    """Verify a data set: checksums, images and cameras of all rows. The exit status is 2 if any is wrong."""
    from mimic3d_platform.data.inspect.verify_dataset import verify_dataset
    from mimic3d_platform.settings import use_services

    console = Console()
    with console.progress("checking", "images") as advance:
        report = verify_dataset(uri, here=local or not use_services().ray_address, on_progress=advance)
    for problem in report.problems:
        console.say(str(problem))
    if count := len(report.problems) + report.more:
        raise UserError(
            f"{uri} has {count} faults: correct the source and make the data set again, or copy it again"
        )
    console.say(f"{uri}: {report.rows} images and their cameras are intact")
