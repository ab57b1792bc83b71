"""Calibrates the metrics of consistency: `make bench-metrics`.

Views of true meshes are consistent, so every metric should be near its ceiling on them. The same views are
then damaged in ways that a good metric must notice, each with growing strength, and blurred, which must not
raise the headline figures. Writes a table and a plot into docs/.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mimic3d.cameras import look_at, on_sphere
from mimic3d.evaluation.detail import gaussian_blur
from mimic3d.evaluation.metric import ARROWS, ViewMetric, Views
from mimic3d.evaluation.registry import VIEWS
from mimic3d.losses.perceptual import PerceptualDistance
from mimic3d_platform.data.render.debian_cars import load_cars
from mimic3d_platform.data.render.meshes import Mesh
from mimic3d_platform.data.render.ray_caster import RayCaster
from mimic3d_platform.data.render.recolour import recolour
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.settings import get_settings

SIDE, COUNT, BOX = 64, 12, 1.1
TRUE, BLUR = "true meshes", "all blurred"
# The headline figures, which blur must not raise.
HEADLINES = ("warp_detail", "field_detail")
# Damages the views of an object; the second are of another one.
Damage = Callable[[Views, Views, float], Views]


def true_views(
    meshes: Sequence[Mesh],
    side: int = SIDE,
    count: int = COUNT,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[Views]:
    """Views of each mesh along an orbit of ±0.4 rad, each from another side."""
    found = []
    for index, mesh in enumerate(meshes):
        yaw = torch.linspace(-0.4, 0.4, count, dtype=torch.float64) + 1.3 * index
        cameras = look_at(on_sphere(yaw, torch.full_like(yaw, 0.45), 1.7), focal=1.4)
        rendered = RayCaster(mesh).render(recolour(mesh, 0, index), cameras, side, 3)
        images = torch.from_numpy(rendered.images).permute(0, 3, 1, 2).float() / 127.5 - 1
        depth = torch.from_numpy(rendered.depth)[:, None]
        opacity = depth.isfinite().float()
        depth = depth.nan_to_num(0, posinf=0)
        found.append(Views(images, cameras, BOX, depth, opacity, orbit=True, perceptual=perceptual))
    return found


def _source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _noise(views: Views, other: Views, strength: float) -> Views:
    return _with(views, views.images + strength * torch.randn(views.images.shape, generator=_source(0)))


def _outlier(views: Views, other: Views, strength: float) -> Views:
    """One view is mixed with its mirror image."""
    images = views.images.clone()
    middle = len(images) // 2
    images[middle] = torch.lerp(images[middle], images[middle].flip(-1), strength)
    return _with(views, images)


def _patches(views: Views, other: Views, strength: float) -> Views:
    """Patches of a quarter of the side are replaced by those of other places."""
    images, source, side = views.images.clone(), _source(1), views.images.shape[-1] // 8
    for view in range(len(images)):
        for _ in range(int(strength)):
            low, high = 2 * side, 6 * side
            y, x = torch.randint(low, high - side, (2,), generator=source).tolist()
            images[view, :, y : y + side, x : x + side] = views.images[view, :, x : x + side, y : y + side]
    return _with(views, images)


def _screen(views: Views, other: Views, strength: float) -> Views:
    """A texture is glued to the screen, over the object."""
    assert views.opacity is not None
    texture = torch.randn(1, 3, *views.images.shape[2:], generator=_source(2))
    return _with(views, views.images + strength * gaussian_blur(texture, 0.7) * views.opacity)


def _repeated(views: Views, other: Views, strength: float) -> Views:
    """The first views are replaced by the middle one."""
    images = views.images.clone()
    images[: int(strength * len(images))] = views.images[len(images) // 2]
    return _with(views, images)


def _mixed(views: Views, other: Views, strength: float) -> Views:
    """Views of the orbit, in random order, are replaced by those of another object."""
    images = views.images.clone()
    order = torch.randperm(len(images), generator=_source(3))
    mixed = order[: round(strength * len(images))]
    images[mixed] = other.images[mixed]
    return _with(views, images)


def _drifting(views: Views, other: Views, strength: float) -> Views:
    """The views turn, along the orbit, into those of another object."""
    share = strength * torch.linspace(0, 1, len(views.images)).view(-1, 1, 1, 1)
    return _with(views, torch.lerp(views.images, other.images, share))


def _flattened(views: Views, other: Views, strength: float) -> Views:
    """The depth is drawn towards a plane."""
    assert views.depth is not None and views.opacity is not None
    seen = views.opacity > 0.5
    middle = views.depth[seen].median()
    return replace(views, depth=torch.where(seen, torch.lerp(views.depth, middle, strength), views.depth))


def _floating(views: Views, other: Views, strength: float) -> Views:
    """A grey square floats in a corner, in image, depth and opacity; its side is a share of the image's."""
    assert views.depth is not None and views.opacity is not None
    side = round(strength * views.images.shape[-1])
    images, depth, opacity = views.images.clone(), views.depth.clone(), views.opacity.clone()
    near = float(views.depth[views.opacity > 0.5].min())
    images[..., 2 : 2 + side, 2 : 2 + side] = 0
    depth[..., 2 : 2 + side, 2 : 2 + side] = near
    opacity[..., 2 : 2 + side, 2 : 2 + side] = 1
    return replace(_with(views, images), depth=depth, opacity=opacity)


def _blur(views: Views, other: Views, strength: float) -> Views:
    return _with(views, gaussian_blur(views.images, strength))


def _with(views: Views, images: Tensor) -> Views:
    return replace(views, images=images.clamp(-1, 1))


DAMAGES: Mapping[str, tuple[Damage, tuple[float, ...]]] = {
    "noise": (_noise, (0.05, 0.15, 0.4)),
    "an outlier": (_outlier, (0.3, 0.6, 1.0)),
    "patches replaced": (_patches, (1, 3, 6)),
    "texture on the screen": (_screen, (0.1, 0.3, 0.8)),
    "one image repeated": (_repeated, (0.25, 0.5, 1.0)),
    "objects mixed": (_mixed, (1 / 6, 1 / 3, 1 / 2)),
    "drift to another object": (_drifting, (0.25, 0.5, 1.0)),
    "depth flattened": (_flattened, (0.25, 0.5, 1.0)),
    "squares that float": (_floating, (0.06, 0.12, 0.18)),
    BLUR: (_blur, (0.5, 1.0, 2.0)),
}


def metrics_of(views: Views, network: str | None, *, fields: bool) -> list[ViewMetric]:
    """The metrics that views like these can have, those of fitted fields only if `fields`.

    Args:
        network: of `views.perceptual`, as `mimic3d weights` names it.
    """
    return [
        metric
        for metric in VIEWS
        if metric.can_measure(views)
        and metric.network in (None, network)
        and (fields or "field" not in metric.needs)
    ]


def calibrate(
    objects: Sequence[Views], metrics: Sequence[ViewMetric], say: Callable[[str], None] = lambda line: None
) -> dict[str, dict[str, list[float]]]:
    """By damage, then by metric: its value at each strength; `TRUE` has a single one."""

    def measured(views: Sequence[Views]) -> dict[str, float]:
        sums = {metric.kind: torch.zeros(0) for metric in metrics}
        for one in views:
            for metric in metrics:
                part = torch.tensor(metric.part(one), dtype=torch.float64)
                before = sums[metric.kind]
                sums[metric.kind] = before + part if len(before) else part
        return {metric.kind: metric.value(sums[metric.kind]) for metric in metrics}

    found = {TRUE: {kind: [value] for kind, value in measured(objects).items()}}
    for name, (damage, strengths) in DAMAGES.items():
        found[name] = {metric.kind: [] for metric in metrics}
        for strength in strengths:
            others = [*objects[1:], objects[0]]
            damaged = [damage(one, other, strength) for one, other in zip(objects, others, strict=True)]
            for kind, value in measured(damaged).items():
                found[name][kind].append(value)
        say(name)
    return found


def in_markdown(found: Mapping[str, Mapping[str, list[float]]], metrics: Sequence[ViewMetric]) -> str:
    """The calibration as a table: a row for each metric, from weak to strong damage in each cell."""
    lines = [f"| metric | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for metric in metrics:
        cells = [", ".join(f"{value:.3g}" for value in found[name][metric.kind]) for name in found]
        lines.append(f"| `{metric.kind}` {ARROWS[metric.direction]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(found: Mapping[str, Mapping[str, list[float]]], metrics: Sequence[ViewMetric], path: Path) -> None:
    """A picture with a panel for each metric, and a line for each damage from none to strong."""
    from matplotlib.figure import Figure

    columns = min(4, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for metric, axes in zip(metrics, grid.flat, strict=False):
        for name in DAMAGES:
            values = [*found[TRUE][metric.kind], *found[name][metric.kind]]
            style = {"linestyle": "--", "color": "black"} if name == BLUR else {}
            axes.plot(range(len(values)), values, marker=".", label=name, **style)
        axes.set_title(f"{metric.kind} {ARROWS[metric.direction]}", fontsize=10)
        axes.set_xticks(range(4), ["none", "", "", "strong"])
    for axes in list(grid.flat)[len(metrics) :]:
        axes.axis("off")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(labels) // 2), fontsize=9)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--no-fields", action="store_true", help="leave out the fitted fields")
    arguments = parser.parse_args()
    started = time.monotonic()
    network = feature_weights.best_available("perceptual")
    perceptual = PerceptualDistance.from_file(feature_weights.resolve(network), network)
    cars = load_cars(get_settings().home / "cache")[: arguments.objects]
    objects = true_views(cars, perceptual=perceptual)
    metrics = metrics_of(objects[0], network, fields=not arguments.no_fields)

    def say(name: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {name}", flush=True)

    found = calibrate(objects, metrics, say)
    table = in_markdown(found, metrics)
    print(table)
    headlines = ", ".join(f"`{metric.kind}`" for metric in metrics if metric.kind in HEADLINES)
    page = arguments.docs / "evaluation-calibration.md"
    page.write_text(
        "# Calibration of the metrics of consistency\n\n"
        "For anyone who wants to know how far to trust the metrics of [evaluation.md](evaluation.md). "
        "`make bench-metrics` writes this page.\n\n"
        f"Views of {len(objects)} cars, {COUNT} of each along an orbit of ±0.4 rad at {SIDE}×{SIDE}, "
        "rendered from true meshes, then damaged. Each cell has the values for increasing strength of the "
        f"damage. Blur must not raise the main metrics ({headlines}). The depth is that of the meshes, "
        "unless the column says otherwise.\n\n"
        f"{table}\n![Each metric against the strength of the damage](evaluation-calibration.png)\n",
        encoding="utf-8",
    )
    plot(found, metrics, arguments.docs / "evaluation-calibration.png")


if __name__ == "__main__":
    main()
