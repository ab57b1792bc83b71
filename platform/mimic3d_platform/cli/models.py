"""`mimic3d import-checkpoint`, `render` and `mesh`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mimic3d_platform.cli.app import Model, app
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError, user_errors


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[
        str, typer.Argument(help="A network pickle that EG3D or Mimic3D released (.pkl): s3://… or a path.")
    ],
    destination: Annotated[
        str, typer.Argument(help="The generator's folder, new or empty: s3://… or a path.")
    ],
    generator_only: Annotated[
        bool, typer.Option("--generator-only", help="Leave out the networks that only a training needs.")
    ] = False,
) -> None:
    """Convert a released pickle of EG3D or Mimic3D to a generator's folder; execute nothing in it."""
    from mimic3d.checkpoints.released import import_released
    from mimic3d_platform import storage
    from mimic3d_platform.models.lineage import write_lineage
    from mimic3d_platform.storage.digests import sha256_of_file

    if not storage.is_local(destination) and storage.exists(destination):
        raise UserError(f"{destination} exists and is not an empty folder: name another")
    with (
        Console().working("converting"),
        storage.read_locally(file) as pickle,
        storage.write_locally(destination) as folder,
    ):
        with user_errors():
            model = import_released(pickle, folder, generator_only=generator_only).model
        imported = {"file": file.rsplit("/", 1)[-1].partition("?")[0], "sha256": sha256_of_file(pickle)}
        write_lineage(folder, {"imported_from": imported})
    Console().say(f"{destination}: a generator of {model.architecture} for {model.image_resolution}² images")


# Options that `render` and `mesh` share.
Latents = Annotated[
    str | None, typer.Option(help="A .npy or .safetensors file of latents, in place of seeds.")
]
Truncation = Annotated[float, typer.Option(help="Truncation ψ: 1 for none, 0 for the average object.")]
Cutoff = Annotated[
    int | None,
    typer.Option("--truncation-cutoff", help="Number of the first layers that are truncated.", min=0),
]
Noise = Annotated[str, typer.Option(help="Noise inputs of the planes' layers: const, random or none.")]
Branch = Annotated[str | None, typer.Option(help="Render 2d or 3d only; both by default.")]
Memory = Annotated[int, typer.Option(help="MiB of memory for the samples along rays at a time.", min=1)]


@app.command()
def render(
    model: Model,
    destination: Annotated[
        str, typer.Argument(help="A .png for a grid, an .mp4 or .webp for a video: s3://… or a path.")
    ],
    seeds: Annotated[str, typer.Option(help="Seeds of the latents, such as 0-5,9.")] = "0-5",
    latents: Latents = None,
    views: Annotated[
        int | None, typer.Option(help="Cameras of a grid (4), or frames of a video (48).", min=1)
    ] = None,
    cameras: Annotated[
        str | None, typer.Option(help="A camera path, .json or .csv, in place of the orbit.")
    ] = None,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="Make a video that interpolates between the latents.")
    ] = False,
    depth: Annotated[
        bool, typer.Option("--depth", help="Add a depth map beside each image; near is white.")
    ] = False,
    branch: Branch = None,
    truncation: Truncation = 1.0,
    cutoff: Cutoff = None,
    noise: Noise = "const",
    memory: Memory = 2048,
) -> None:
    """Render a grid or a video of a generator, from seeds or latents, along an orbit or a camera path."""
    from mimic3d_platform.models.model_uris import load_generator
    from mimic3d_platform.models.rendering import (
        RenderOptions,
        camera_path,
        parse_seeds,
        write_grid,
        write_video,
    )

    console = Console()
    suffix = Path(destination).suffix
    if suffix not in (".png", ".mp4", ".webp"):
        raise UserError(f"{destination} is no .png, .mp4 or .webp: give one of them")
    is_video = suffix != ".png"
    if interpolate and not is_video:
        raise UserError(f"{destination} is an image: --interpolate makes a video, so give an .mp4 or .webp")
    branches = (branch,) if branch else None
    options = RenderOptions(
        parse_seeds(seeds), latents, truncation, cutoff, branches, depth, noise, memory * 2**20
    )
    with console.working("loading the model"):
        generator, config = load_generator(model)
    path = camera_path(config.camera, cameras, views or (48 if is_video else 4), closed=is_video)
    if is_video:
        with console.progress("rendering", "frames") as advance:
            write_video(generator, config, destination, options, path, interpolate, advance)
    else:
        with console.progress("rendering", "views") as advance:
            write_grid(generator, config, destination, options, path, advance)
    console.say(f"wrote {destination}")


@app.command()
def mesh(
    model: Model,
    destination: Annotated[str, typer.Argument(help="A .ply or .glb file: s3://… or a path.")],
    seed: Annotated[int, typer.Option(help="Seed of the latent, as in `render --seeds`.", min=0)] = 0,
    latents: Latents = None,
    resolution: Annotated[
        int, typer.Option(help="Samples along each side of the box.", min=2, max=2048)
    ] = 128,
    level: Annotated[float | None, typer.Option(help="Raw density at the surface; 10 by default.")] = None,
    largest: Annotated[
        bool, typer.Option("--largest", help="Keep only the largest connected piece.")
    ] = False,
    watertight: Annotated[
        bool,
        typer.Option(
            "--watertight/--open", help="Close the surface at the sides of the box, or leave it open."
        ),
    ] = True,
    branch: Branch = None,
    truncation: Truncation = 1.0,
    cutoff: Cutoff = None,
    noise: Noise = "const",
    memory: Memory = 2048,
) -> None:
    """Write the coloured surface of one object as a mesh."""
    from mimic3d_platform.models.model_uris import load_generator
    from mimic3d_platform.models.rendering import RenderOptions, write_mesh

    branches = (branch,) if branch else None
    options = RenderOptions(
        (seed,), latents, truncation, cutoff, branches, noise=noise, memory=memory * 2**20
    )
    console = Console()
    with console.working("loading the model"):
        generator, config = load_generator(model)
    with console.working(f"extracting the surface: {resolution}³ points"):
        faces = write_mesh(
            generator,
            config,
            destination,
            options,
            resolution,
            level=level,
            watertight=watertight,
            largest_only=largest,
        )
    console.say(f"wrote {destination}: {faces} faces")
