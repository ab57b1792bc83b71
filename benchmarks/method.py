"""Compares the method with its baselines by the same number of images: `make bench-method`.

EG3D, EpiGRAF's patch GAN, joint training and the two stages train networks of one size on one data set, with
one seed, in one process each and without services; then `mimic3d evaluate`'s metrics judge every branch. A
training that was stopped resumes. Writes docs/comparison.md and its picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.pretrained import Run
from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d.evaluation.metric import Estimate
from mimic3d.export.grid import image_grid
from mimic3d.export.latents import latents_of_seeds
from mimic3d.export.orbits import turntable
from mimic3d_platform.evaluation.evaluate import Options, measure
from mimic3d_platform.evaluation.measured import Measured
from mimic3d_platform.evaluation.subjects import open_subject

# By the names of the table.
METHODS = {
    "EG3D": "cars-demo-eg3d",
    "patch GAN (EpiGRAF)": "cars-demo-patch-gan",
    "joint": "cars-demo-joint",
    "two stages (Mimic3D)": "cars-demo",
}
# Rows of the table: what the metric's name begins with, and its heading.
SHOWN = (
    ("fd_", "Fréchet distance"),
    ("warp_detail", "warp_detail"),
    ("warp_share", "warp_share"),
    ("field_detail", "field_detail (fitted to the other views)"),
    ("fields_detail", "fields_detail (two fields)"),
    ("fields_depth", "fields_depth (two fields)"),
    ("field_psnr", "field_psnr, dB"),
    ("field_depth", "field_depth"),
    ("silhouette_iou", "silhouette_iou"),
    ("floaters", "floaters"),
)
SEEDS, VIEWS = 3, 3


@dataclass(frozen=True)
class Trained:
    """A baseline or the method, and where its generator lies."""

    name: str
    config: Config
    folder: Path


def longer(config: Config, times: float, seed: int) -> Config:
    """A recipe with all its lengths multiplied."""
    lengths = ("stage1_kimg", "stage2_kimg", "cooldown_kimg")
    schedule = {f"schedule.{key}": getattr(config.schedule, key) * times for key in lengths}
    anneal = {"imitation.patch_anneal_kimg": config.imitation.patch_anneal_kimg * times}
    return override(config, {**schedule, **anneal, "seed": seed})


def train(name: str, arguments: argparse.Namespace) -> Trained:
    """Trains a method to its end, or finds it trained."""
    config = longer(get_recipe(METHODS[name]), arguments.times, arguments.seed)
    out = arguments.out / METHODS[name]
    if not (out / "export" / "config.yaml").is_file():
        run = Run(config, arguments.data, arguments.weights, out, arguments.device, graphs=False)
        run.train(float("inf"), checkpoint_seconds=60.0, metric_images=0)
    return Trained(name, config, out / "export")


def judge(trained: Trained, arguments: argparse.Namespace) -> Measured:
    """Measures every branch of a generator."""
    options = Options(images=arguments.images, objects=arguments.objects, views=arguments.views, here=True)
    subject, data = open_subject(str(trained.folder), str(arguments.data), options.seed)
    return measure(subject, data, options, cache_uri=str(arguments.out))


def table(found: Sequence[tuple[str, Measured]]) -> str:
    """A column for each method and branch, the value with its interval; in Markdown."""
    columns = [
        (name, branch, measured)
        for name, measured in found
        for branch in ("2d", "3d")
        if any(key.endswith(f"/{branch}") for key in measured.estimates)
    ]
    lines = ["| metric | " + " | ".join(f"{name}, {branch.upper()}" for name, branch, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for prefix, heading in SHOWN:
        cells, arrow = [], ""
        for _, branch, measured in columns:
            key = next((key for key in measured.directions if _is(key, prefix, branch)), "")
            arrow = measured.directions.get(key, arrow)
            cells.append(_cell(measured.estimates.get(key)))
        lines.append(f"| {heading} {arrow} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _is(key: str, prefix: str, branch: str) -> bool:
    kind, _, of = key.partition("/")
    return of == branch and (kind.startswith(prefix) if prefix.endswith("_") else kind == prefix)


def _cell(estimate: Estimate | None) -> str:
    return f"{estimate.value:.3g} ({estimate.low:.3g} … {estimate.high:.3g})" if estimate else "–"


@torch.no_grad()
def draw(trained: Sequence[Trained], path: Path) -> None:
    """Draws a row for each method and branch: three latents from three sides."""
    rows, captions = [], []
    for each in trained:
        generator, config = load_generator(each.folder)
        cameras = turntable(config.camera, VIEWS + 1)[:VIEWS]
        w = generator.mapping(latents_of_seeds(config.model, range(SEEDS)), cameras[:1].expand(SEEDS, -1))
        planes = generator.planes(w)
        for branch in generator.branches:
            views = [
                generator.view(planes, w, camera.expand(SEEDS, -1), branch).image.clamp(-1, 1)
                for camera in cameras
            ]
            rows.append([views[side][seed] for seed in range(SEEDS) for side in range(VIEWS)])
            captions.append(f"{each.name}, {branch.upper()}")
    image_grid(rows, captions=captions).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of shards, images of 32×32")
    parser.add_argument("--weights", type=Path, required=True, help="folder of feature networks' safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path, help="write the page and its picture here")
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--times", type=float, default=1.0, help="multiplies the recipes' lengths")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    trained = [train(name, arguments) for name in arguments.only]
    found = [(each.name, judge(each, arguments)) for each in trained]
    shown = table(found)
    print(shown)
    if arguments.docs is None:
        return
    draw(trained, arguments.docs / "comparison.png")
    kimg = trained[-1].config.total_nimg / 1000
    (arguments.docs / "comparison.md").write_text(
        "# The method beside its baselines\n\n"
        "For people who want to know what the imitation buys. `make bench-method` writes this page.\n\n"
        f"Networks of one size at 32×32, {kimg:g} thousand images of one data set of cars each, seed "
        f"{arguments.seed}; {arguments.images} images and {arguments.objects} objects of {arguments.views} "
        "views (±0.4 rad) are measured, with 95 % intervals. [evaluation.md](evaluation.md) says what each "
        "metric is and what fools it.\n\n"
        f"{shown}\n![Three latents of each method from three sides](comparison.png)\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
