"""`mimic3d demo`: the whole workflow on one machine, from rendered data to a registered generator.

Each part reuses what an earlier call has made, so a demo that was stopped resumes when it is called again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mimic3d.export.orbits import orbit, turntable
from mimic3d_platform import local, storage, tracking
from mimic3d_platform.cli.demo_length import RECIPE, run_name, stage2_length
from mimic3d_platform.console import Console
from mimic3d_platform.data.render.render_dataset import render_dataset
from mimic3d_platform.evaluation.feature_weights import best_available
from mimic3d_platform.models.model_uris import load_generator
from mimic3d_platform.models.pull import pull
from mimic3d_platform.models.rendering import (
    NoSurfaceError,
    RenderOptions,
    write_grid,
    write_mesh,
    write_video,
)
from mimic3d_platform.settings import use_services
from mimic3d_platform.training.config_from_command import resolve_config
from mimic3d_platform.training.train_and_register import train_and_register

SCRATCH_RECIPE = "cars-demo"
DATA_URI = "s3://mimic3d/data"
MODEL = "mimic3d-cars"
ALIAS = "champion"
# Colourings and views of each of Debian's cars.
DATA_SIZES = {RECIPE: (16, 8), SCRATCH_RECIPE: (16, 12)}
IDENTITIES, FRAMES, MESH_RESOLUTION = 4, 32, 96
MESH_SEED = 0


class _Stopwatch:
    """Prints the heading of each part and measures its duration."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    @contextlib.contextmanager
    def part(self, name: str, what: str) -> Iterator[None]:
        self._console.heading(f"{len(self.seconds) + 1}. {name}: {what}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def run_demo(
    folder: Path, console: Console, overrides: Sequence[str] = (), *, from_scratch: bool = False
) -> None:
    """Starts the services, renders cars, trains both stages, registers the generator, pulls and renders it.

    The training continues from `builtin:cars-stage1`, and its stage 2 is as long as this machine allows.

    Args:
        folder: gets the images, the mesh and `summary.json`.
        overrides: of the recipe, KEY=VALUE each.
        from_scratch: train smaller networks from nothing instead.
    Raises:
        UserError: a service does not start, or the car models or feature weights cannot be fetched.
    """
    stopwatch = _Stopwatch(console)
    with stopwatch.part("stack", "object storage, MLflow and Ray, on loopback"):
        local.up(on_progress=console.say)
        use_services()
    with stopwatch.part("weights", "the feature networks of the loss and the metrics"):
        names = [best_available(purpose, console.say) for purpose in ("perceptual", "frechet")]
        console.say(f"perceptual loss on {names[0]}, Fréchet distance on {names[1]}")
    # Data set and run are named after their settings, so that another version of the recipe or of the
    # constants above gets a data set and a run of its own.
    recipe = SCRATCH_RECIPE if from_scratch else RECIPE
    colourings, views = DATA_SIZES[recipe]
    config = resolve_config(recipe, DATA_URI, overrides)
    resolution, focal = config.model.image_resolution, config.camera.focal
    data_uri = storage.join(DATA_URI, f"{recipe}-{resolution}px-focal{focal:g}-{colourings}x{views}")
    with stopwatch.part("data", "cars from human-made models, ray cast, as Parquet in S3"):
        with console.progress("rendering", "images") as advance:
            manifest = render_dataset(
                data_uri,
                resolution,
                colourings=colourings,
                views=views,
                seed=0,
                supersample=4,
                focal=focal,
                on_progress=advance,
            )
        console.say(f"{manifest.count} images of {manifest.identities} cars in {data_uri}")
    with stopwatch.part("training", "stage 1, then stage 2, on Ray Train"):
        if recipe == RECIPE:
            overrides = [*stage2_length(data_uri, names[0], overrides, console), *overrides]
        config = resolve_config(recipe, data_uri, overrides)
        name = run_name(config)
        finished = train_and_register(config, name, console, model=MODEL, alias=ALIAS)
    run_id = finished.result.run_id
    # Not the alias, which a former version keeps that is better.
    model_uri = f"models:/{MODEL}/{finished.version}"
    pictures = folder / f"version-{finished.version}-{run_id[:8]}"
    with stopwatch.part("pictures", f"{model_uri} pulled and rendered from all sides"):
        pull(model_uri, pictures / "model")
        paths = _render(pictures / "model", pictures, console)
        paths["samples"] = pictures / "samples"
        tracking.download_artifacts(run_id, "samples", paths["samples"])

    mlflow_url = tracking.run_url(run_id) or ""
    places = {
        "MLflow": mlflow_url,
        "Ray": local.status().services["ray"].url or "",
        "model": model_uri,
        **{kind: str(path) for kind, path in paths.items()},
    }
    _print_results(finished.result.metrics, stopwatch.seconds, places, console)
    summary = {
        "recipe": recipe,
        "data": {"uri": data_uri, "images": manifest.count, "fingerprint": manifest.fingerprint},
        "metrics": {str(nimg): found for nimg, found in finished.result.metrics.items()},
        "training_seconds": round(finished.result.seconds, 1),
        "seconds": stopwatch.seconds,
        "model": {"uri": model_uri, "version": finished.version, "run_id": run_id},
        "pictures": {kind: str(path) for kind, path in paths.items()},
        "mlflow": mlflow_url,
    }
    storage.write_bytes(folder / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")


def _print_results(
    metrics: Mapping[int, Mapping[str, float]],
    seconds: Mapping[str, float],
    places: Mapping[str, str],
    console: Console,
) -> None:
    """Prints the metrics, the seconds of each part, and where everything is."""
    console.heading("Results")
    console.metrics(metrics)
    console.table(("part", "seconds"), [(name, f"{taken:.0f}") for name, taken in seconds.items()])
    for what, place in places.items():  # Lines, because a table would break long addresses.
        console.say(f"{what:8} {place}")
    console.say("`mimic3d down` stops the services; `mimic3d demo` again reuses all results")


def _render(model: Path, folder: Path, console: Console) -> dict[str, Path]:
    """Renders a grid, a video and a mesh of a generator, unless they exist; returns the paths by kind.

    A generator that has been trained too little has no surface; the result then has no mesh.
    """
    paths = {"grid": folder / "grid.png", "orbit": folder / "orbit.mp4", "mesh": folder / "car.glb"}
    cars = RenderOptions(seeds=tuple(range(IDENTITIES)))
    generator, config = load_generator(str(model))
    if not paths["grid"].is_file():
        write_grid(generator, config, paths["grid"], cars, turntable(config.camera, 4))
    if not paths["orbit"].is_file():
        with console.progress("rendering", "frames") as advance:
            cameras = orbit(config.camera, FRAMES)
            write_video(generator, config, paths["orbit"], cars, cameras, progress=advance)
    if not paths["mesh"].is_file():
        try:
            write_mesh(generator, config, paths["mesh"], RenderOptions((MESH_SEED,)), MESH_RESOLUTION)
        except NoSurfaceError as error:
            console.say(str(error))
            del paths["mesh"]
    return paths
