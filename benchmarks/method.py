"""Compares the method with its baselines by the same number of images: `make bench-method`.

EG3D, EpiGRAF's patch GAN, joint training and the two stages train networks of one size on one data set, with
one seed, in one process each and without services; then `mimic3d evaluate`'s metrics judge every branch, at
the end and on the way, and the model that comes with the project. A training that was stopped resumes, and
what was measured is not measured again. Writes docs/results.md and its pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.pretrained import Run
from mimic3d.checkpoints.generator_folder import load_generator, save_generator
from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d.evaluation.metric import Estimate
from mimic3d.evaluation.registry import DIFFERENCE
from mimic3d.export.grid import image_grid
from mimic3d.export.latents import latents_of_seeds
from mimic3d.export.orbits import turntable
from mimic3d_platform.evaluation.evaluate import Options, measure
from mimic3d_platform.evaluation.measured import Measured
from mimic3d_platform.evaluation.subjects import open_subject
from mimic3d_platform.models.model_uris import builtin_folder

# By the names of the table.
METHODS = {
    "EG3D": "cars-demo-eg3d",
    "patch GAN (EpiGRAF)": "cars-demo-patch-gan",
    "joint": "cars-demo-joint",
    "two stages (Mimic3D)": "cars-demo",
}
# Of a ray, coarse and by importance each, where a generator is judged: twice the training's, which are so few
# that views of the 3D branch differ by where they lie.
SAMPLES = 16
# The model that comes with the project at the end of each stage, and the branches trained by then.
PRETRAINED = (
    ("stage 1", "builtin:cars-stage1", ("2d",)),
    ("both stages", "builtin:cars", ("2d", "3d", DIFFERENCE)),
)
# Rows of the table: what the metric's name begins with, and its heading.
SHOWN = (
    ("fd_", "Fréchet distance"),
    ("warp_detail", "warp_detail"),
    ("warp_share", "warp_share"),
    ("field_detail", "field_detail (fitted to the other views)"),
    ("fields_detail", "fields_detail (two fields)"),
    ("fields_depth", "fields_depth (two fields)"),
    ("field_psnr", "field_psnr, dB"),
    ("field_heldout_psnr", "field_heldout_psnr, dB"),
    ("field_depth", "field_depth"),
    ("silhouette_iou", "silhouette_iou"),
    ("floaters", "floaters"),
)
HEADINGS = {"2d": "2D", "3d": "3D", DIFFERENCE: "3D − 2D"}
# Of the curves: what the metric's name begins with, and its panel's title.
CURVES = (("fd_", "Fréchet distance ↓"), ("warp_detail", "warp_detail ↑"))
POINTS = 4
SEEDS, VIEWS = 3, 3
# By images seen in thousands, the estimate of each metric's full name.
Curve = dict[float, dict[str, Estimate]]


@dataclass(frozen=True)
class Trained:
    """A baseline or the method, and where its generators lie."""

    name: str
    config: Config
    out: Path

    @property
    def folder(self) -> Path:
        """The last generator's."""
        return self.out / "export"

    def judged(self, folder: Path) -> Path:
        """A copy of one of its generators that renders with `SAMPLES`."""
        copy = self.out / "judged" / folder.name
        if not copy.is_dir():
            generator, config = load_generator(folder)
            samples = {"rendering.coarse_samples": SAMPLES, "rendering.importance_samples": SAMPLES}
            save_generator(copy, generator, override(config, samples))
        return copy

    @property
    def snapshots(self) -> dict[float, Path]:
        """The generators at `POINTS` points of the training, by images seen in thousands."""
        apart = self.config.total_nimg // POINTS
        folders = sorted((self.out / "snapshots").iterdir())
        return {int(each.name) / 1000: each for each in folders if int(each.name) % apart == 0}


def longer(config: Config, times: float, seed: int) -> Config:
    """A recipe with all its lengths multiplied."""
    lengths = ("stage1_kimg", "stage2_kimg", "cooldown_kimg")
    schedule = {f"schedule.{key}": getattr(config.schedule, key) * times for key in lengths}
    anneal = {"imitation.patch_anneal_kimg": config.imitation.patch_anneal_kimg * times}
    often = {"output.metric_kimg": config.total_nimg / 1000 * times / POINTS}
    return override(config, {**schedule, **anneal, **often, "seed": seed})


def train(name: str, arguments: argparse.Namespace) -> Trained:
    """Trains a method to its end, or finds it trained."""
    config = longer(get_recipe(METHODS[name]), arguments.times, arguments.seed)
    out = arguments.out / METHODS[name]
    if not (out / "export" / "config.yaml").is_file():
        run = Run(config, arguments.data, arguments.weights, out, arguments.device, graphs=False)
        run.train(float("inf"), checkpoint_seconds=60.0, metric_images=0)
    return Trained(name, config, out)


def judge(
    uri: str, data: Path, arguments: argparse.Namespace, *, share: int = 1, fields: bool = True
) -> Measured:
    """Measures every branch of a generator, with one of `share` parts of the images."""
    options = Options(
        images=arguments.images // share,
        objects=arguments.objects,
        views=arguments.views,
        fields=fields,
        here=True,
    )
    subject, data_uri = open_subject(uri, str(data), options.seed)
    return measure(subject, data_uri, options, cache_uri=str(arguments.out))


def judge_at_end(trained: Trained, arguments: argparse.Namespace) -> Measured:
    """Measures the last generator of a training."""
    judged = str(trained.judged(trained.folder))
    return judge(judged, arguments.data, arguments)


def curve(trained: Trained, arguments: argparse.Namespace) -> Curve:
    """The metrics on the way, of the branches that had been trained by then."""
    stage1 = trained.config.schedule.stage1_kimg
    points = {}
    for kimg, folder in trained.snapshots.items():
        judged = str(trained.judged(folder))
        estimates = judge(judged, arguments.data, arguments, share=2, fields=False).estimates
        points[kimg] = {
            name: each for name, each in estimates.items() if kimg > stage1 or name.endswith("/2d")
        }
    return points


def plot(curves: Sequence[tuple[str, Curve]], path: Path) -> None:
    """Draws each metric's panel over the images seen: a colour for each method, dashes for the 2D branch."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (prefix, title) in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for number, (method, points) in enumerate(curves):
            for branch, style in (("2d", "--"), ("3d", "-")):
                found = [
                    (kimg, estimate)
                    for kimg, estimates in points.items()
                    for name, estimate in estimates.items()
                    if _is(name, prefix, branch)
                ]
                if not found:
                    continue
                kimgs = [kimg for kimg, _ in found]
                label, colour = f"{method}, {branch.upper()}", f"C{number}"
                axes.plot(
                    kimgs, [each.value for _, each in found], style, color=colour, label=label, marker="."
                )
                lows, highs = [each.low for _, each in found], [each.high for _, each in found]
                axes.fill_between(kimgs, lows, highs, color=colour, alpha=0.12, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("images seen, thousands", fontsize=9)
        axes.grid(alpha=0.3)
    figure.axes[0].set_yscale("log")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)


def table(found: Sequence[tuple[str, Measured]]) -> str:
    """A column for each method and branch, and for their difference; values with intervals, in Markdown."""
    columns = [
        (name, branch, measured)
        for name, measured in found
        for branch in ("2d", "3d", DIFFERENCE)
        if any(key.endswith(f"/{branch}") for key in measured.estimates)
    ]
    lines = ["| metric | " + " | ".join(f"{name}, {HEADINGS[branch]}" for name, branch, _ in columns) + " |"]
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


def judge_pretrained(arguments: argparse.Namespace) -> list[tuple[str, Measured]]:
    """The metrics of `PRETRAINED`, of the branches that had been trained."""
    found = []
    for name, uri, branches in PRETRAINED:
        measured = judge(uri, arguments.pretrained_data, arguments, share=2)
        kept = {key: each for key, each in measured.estimates.items() if key.partition("/")[2] in branches}
        found.append((name, replace(measured, estimates=kept)))
    return found


@torch.no_grad()
def draw(generators: Sequence[tuple[str, Path, Sequence[str]]], path: Path) -> None:
    """Draws a row for each branch of a generator: three latents from three sides."""
    rows, captions = [], []
    for caption, folder, branches in generators:
        generator, config = load_generator(folder)
        cameras = turntable(config.camera, VIEWS + 1)[:VIEWS]
        w = generator.mapping(latents_of_seeds(config.model, range(SEEDS)), cameras[:1].expand(SEEDS, -1))
        planes = generator.planes(w)
        for branch in (branch for branch in generator.branches if branch in branches):
            views = [
                generator.view(planes, w, camera.expand(SEEDS, -1), branch).image.clamp(-1, 1)
                for camera in cameras
            ]
            rows.append([views[side][seed] for seed in range(SEEDS) for side in range(VIEWS)])
            captions.append(f"{caption}, {branch.upper()}")
    image_grid(rows, captions=captions, min_panel=64).save(path)


PAGE = """# Results

For people who want to know what the imitation buys, and what training looks like. `{command}` trains,
measures and writes this page, without a GPU; so the networks are small.

## The method beside its baselines

Networks of one size at 32×32, trained with {kimg:g} thousand images of one data set of cars each, seed
{seed}. The metrics are of {images} images, and of {views} views (±0.4 rad) of each of {objects} objects,
with twice the training's samples of a ray; intervals are of 95 %. The Fréchet distance is on the features
of {extractor}; [evaluation.md](evaluation.md) says what each metric is.

Trainings this short differ by chance, and even by how a processor rounds: the intervals are of one training
each, so repeat it with other seeds before concluding from a small difference of two methods.

{table}
![Three latents of each method from three sides, 2D and 3D branches](results-methods.png)

*Three latents of each method, each from three sides.*

## On the way

![Fréchet distance and warp_detail of each branch over the images seen](results-curves.png)

*The same metrics, of half as many images, over the images seen; bands are 95 % intervals. A branch is drawn
once it is trained: the 3D branch of the two stages from {stage1:g} thousand images on.*

![The two stages' generator at some points of its training](results-training.png)

*The two stages' generator on the way, both branches.*
"""
PRETRAINED_PAGE = """
## The model that comes with the project

`builtin:cars` has images of 64×64 and took eight minutes of an H100 to train; its card has the details. It
is measured in the same way, with half as many images, against its training set of {pretrained_reals}
images, beside its first stage (`builtin:cars-stage1`), which is the training of EG3D.

{pretrained_table}
![Three latents of the model after stage 1 and after both stages](results-pretrained.png)

*Three latents, each from three sides: after stage 1, and both branches after both stages.*
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of shards, images of 32×32")
    parser.add_argument("--weights", type=Path, required=True, help="folder of feature networks' safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path, help="write the page and its pictures here")
    parser.add_argument(
        "--pretrained-data",
        type=Path,
        help="builtin:cars' training set; its section is left out if not given",
    )
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--times", type=float, default=1.0, help="multiplies the recipes' lengths")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--objects", type=int, default=12)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    trained = [train(name, arguments) for name in arguments.only]
    found = [(each.name, judge_at_end(each, arguments)) for each in trained]
    print(table(found))
    curves = [(each.name, curve(each, arguments)) for each in trained]
    if arguments.docs is None:
        return
    write_page(trained, found, curves, arguments)


def write_page(
    trained: Sequence[Trained],
    found: Sequence[tuple[str, Measured]],
    curves: Sequence[tuple[str, Curve]],
    arguments: argparse.Namespace,
) -> None:
    """Writes docs/results.md and its pictures."""
    docs, method, both = arguments.docs, trained[-1], ("2d", "3d")
    draw([(each.name, each.judged(each.folder), both) for each in trained], docs / "results-methods.png")
    plot(curves, docs / "results-curves.png")
    points = [(f"{kimg:g} kimg", method.judged(folder), both) for kimg, folder in method.snapshots.items()]
    draw(points, docs / "results-training.png")
    times = "" if arguments.times == 1 else f" TIMES={arguments.times:g}"
    page = PAGE.format(
        command=f"make bench-method{times}",
        kimg=method.config.total_nimg / 1000,
        stage1=method.config.schedule.stage1_kimg,
        seed=arguments.seed,
        images=arguments.images,
        objects=arguments.objects,
        views=arguments.views,
        extractor=found[-1][1].facts["extractor"],
        table=table(found),
    )
    if arguments.pretrained_data is not None:
        page += pretrained_section(arguments)
    (docs / "results.md").write_text(page, encoding="utf-8")


def pretrained_section(arguments: argparse.Namespace) -> str:
    """The page's section on the model that comes with the project; draws its picture."""
    pretrained = judge_pretrained(arguments)
    folders = [(name, builtin_folder(uri), branches) for name, uri, branches in PRETRAINED]
    draw(
        [(name, folder, each) for name, folder, each in folders if folder],
        arguments.docs / "results-pretrained.png",
    )
    return PRETRAINED_PAGE.format(
        pretrained_reals=pretrained[-1][1].facts["real images"], pretrained_table=table(pretrained)
    )


if __name__ == "__main__":
    main()
