"""Calibrates the Fréchet distances that need no download from the internet: `make bench-fidelity`.

A distance is to be trusted if it is small between real images of different objects, and grows with the
strength of any damage to them. Generators that people can rank by eye are measured beside. Writes a table
and a plot into docs/.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from mimic3d.evaluation.detail import gaussian_blur
from mimic3d.evaluation.frechet import FeatureStatistics, frechet_distance
from mimic3d.evaluation.generated import generated_images
from mimic3d.features.extractor import FeatureExtractor
from mimic3d.features.registry import load_extractor
from mimic3d.randomness import permutation
from mimic3d.rendering.images import to_uint8
from mimic3d.training.augmentation import hue_rotation
from mimic3d.training.local import LocalShards
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.models.generator import Generator

NETWORKS = ("efficientnetlite2mid", "mobilenetv2")
UNDAMAGED, HUES = "none", "shifted hues"
# Generators, and the branch that is measured: after the first stage of a training, and after both.
GENERATORS = (("builtin:cars-stage1", "2d"), ("builtin:cars", "2d"), ("builtin:cars", "3d"))
BATCH = 64
# Damages images (N, 3, R, R) in [-1, 1]; objects are on white.
Damage = Callable[[Tensor, float], Tensor]


def _source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _coarsened(images: Tensor, strength: float) -> Tensor:
    """Squares of `strength` pixels take their mean."""
    size = int(strength)
    return F.interpolate(F.avg_pool2d(images, size), images.shape[2:], mode="nearest")


def _noise(images: Tensor, strength: float) -> Tensor:
    return images + strength * torch.randn(images.shape, generator=_source(0))


def _warped(images: Tensor, strength: float) -> Tensor:
    """Every pixel moves, smoothly over the image, by about `strength` of half the side."""
    moves = torch.randn(len(images), 2, 4, 4, generator=_source(1))
    moves = F.interpolate(moves, images.shape[2:], mode="bicubic", align_corners=True)
    still = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    grid = still + strength * moves.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _missing(images: Tensor, strength: float) -> Tensor:
    """A square of `strength` of the side, in the middle half, becomes white."""
    damaged, source, side = images.clone(), _source(2), images.shape[-1]
    hole = round(strength * side)
    corners = side // 4 + torch.randint(side // 2 - hole + 1, (len(images), 2), generator=source)
    for image, (y, x) in zip(damaged, corners.tolist(), strict=True):
        image[:, y : y + hole, x : x + hole] = 1
    return damaged


def _blobs(images: Tensor, strength: float) -> Tensor:
    """Coloured blobs are added to the object."""
    colours = torch.randn(len(images), 3, 5, 5, generator=_source(3))
    colours = F.interpolate(colours, images.shape[2:], mode="bicubic", align_corners=True)
    shown = (images.amin(dim=1, keepdim=True) < 0.95).to(images)
    return images + strength * colours * shown


def _hue_shifted(images: Tensor, strength: float) -> Tensor:
    """Hues turn by `strength` degrees."""
    rotation = hue_rotation(torch.tensor([math.radians(strength)]))[0]
    return torch.einsum("dc,nchw->ndhw", rotation, images)


DAMAGES: Mapping[str, tuple[Damage, tuple[float, ...]]] = {
    "blur": (gaussian_blur, (0.5, 1.0, 2.0)),
    "coarser pixels": (_coarsened, (2, 4, 8)),
    "noise": (_noise, (0.05, 0.15, 0.4)),
    "warped shapes": (_warped, (0.05, 0.1, 0.2)),
    "missing parts": (_missing, (0.2, 0.35, 0.5)),
    "coloured blobs": (_blobs, (0.1, 0.3, 0.8)),
    HUES: (_hue_shifted, (30, 90, 180)),
}
# A set with paint of every hue is not damaged by a shift of hues.
ORDERED = tuple(name for name in DAMAGES if name != HUES)


@torch.no_grad()
def statistics(extractor: FeatureExtractor, images: Tensor) -> FeatureStatistics:
    """The feature statistics of images (N, 3, R, R) uint8."""
    return FeatureStatistics.of((extractor(batch) for batch in images.split(BATCH)), extractor.dim)


def damaged(images: Tensor, damage: Damage, strength: float) -> Tensor:
    """Images (N, 3, R, R) uint8, damaged."""
    return to_uint8(damage(images.float() / 127.5 - 1, strength))


def calibrate(extractor: FeatureExtractor, reals: Tensor, others: Tensor) -> dict[str, list[float]]:
    """By damage to images of other objects, the distance from the reals at each strength.

    Args:
        reals, others: (N, 3, R, R) uint8.
    """
    expected = statistics(extractor, reals)
    found = {UNDAMAGED: [frechet_distance(expected, statistics(extractor, others))]}
    for name, (damage, strengths) in DAMAGES.items():
        found[name] = [
            frechet_distance(expected, statistics(extractor, damaged(others, damage, strength)))
            for strength in strengths
        ]
    return found


def is_ordered(found: Mapping[str, Sequence[float]], damage: str) -> bool:
    """True if the distance grows from the undamaged images through every strength of a damage."""
    values = [*found[UNDAMAGED], *found[damage]]
    return values == sorted(values)


def two_parts(shards: LocalShards, size: int) -> tuple[Tensor, Tensor]:
    """(size, 3, R, R) uint8 each: random images, of every other object and of those between."""
    tables = [pq.read_table(shards.folder / shard.path, columns=["identity"]) for shard in shards.shards]
    names = [name for table in tables for name in table.column("identity").to_pylist()]
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    parity = torch.tensor([number[name] % 2 for name in names])
    images, order = shards.decoded(), torch.from_numpy(permutation(0, "fidelity", size=len(names)))
    first, second = (images[order[parity[order] == part][:size]] for part in (0, 1))
    return first, second


def generated(uri: str, branch: str, shards: LocalShards, count: int) -> Tensor:
    """(count, 3, R, R) uint8, of a branch of a generator."""
    network = Generator.load(uri).network
    images = generated_images(network, shards.cameras, range(count), seed=0, branches=(branch,))
    return torch.cat([each[branch] for each in images])


def in_markdown(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A row for each damage or generator, a column for each extractor; from weak to strong in each cell."""
    lines = [f"| images | {' | '.join(f'`fd_{name}`' for name in found)} |", "|---" * (len(found) + 1) + "|"]
    for row in next(iter(found.values())):
        cells = [", ".join(f"{value:.0f}" for value in column[row]) for column in found.values()]
        heading = "real images of other objects" if row == UNDAMAGED else row
        lines.append(f"| {heading} | {' | '.join(cells)} |")
    ordered = [str(sum(is_ordered(column, name) for name in ORDERED)) for column in found.values()]
    lines.append(f"| *damages ordered by strength, of {len(ORDERED)}* | {' | '.join(ordered)} |")
    return "\n".join(lines) + "\n"


def plot(found: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draws a panel for each extractor, with a line for each damage from none to strong."""
    figure = Figure(figsize=(4.4 * len(found), 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for (name, column), axes in zip(found.items(), panels, strict=True):
        for damage in DAMAGES:
            values = [*column[UNDAMAGED], *column[damage]]
            axes.plot(range(len(values)), values, marker=".", label=damage)
        axes.set_title(f"fd_{name} ↓", fontsize=10)
        axes.set_xticks(range(4), ["none", "", "", "strong"])
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=100)


PAGE = """# Calibration of the Fréchet distances

For anyone who wants to know how far to trust the stand-ins for FID of [evaluation.md](evaluation.md).
`make bench-fidelity` writes this page.

Fréchet distances from {size} real images of cars, {side}×{side}, of as many images of other cars, which are
damaged; each cell has the values for increasing strength of the damage. The cars' paint has every hue, so a
shift of all hues gives images that are as good: a distance should hardly notice it.

The last rows are a generator after the first stage of its training, whose cars are blurred and have hardly
any wheels, and both its branches after both stages ([results.md](results.md) shows them). The default is
`fd_{default}`.

{table}
![Each distance against the strength of the damage](evaluation-fidelity.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of shards, renders of cars")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    shards = LocalShards(arguments.data)
    reals, others = two_parts(shards, arguments.images)
    samples = {
        f"`{uri}`, {branch.upper()}": generated(uri, branch, shards, len(others))
        for uri, branch in GENERATORS
    }
    found = {}
    for network in NETWORKS:
        extractor = load_extractor(feature_weights.resolve(network), network)
        expected = statistics(extractor, reals)
        found[network] = calibrate(extractor, reals, others) | {
            name: [frechet_distance(expected, statistics(extractor, images))]
            for name, images in samples.items()
        }
    print(in_markdown(found))
    page = PAGE.format(
        size=len(reals),
        side=shards.resolution,
        default=feature_weights.best_available("frechet"),
        table=in_markdown(found),
    )
    (arguments.docs / "evaluation-fidelity.md").write_text(page, encoding="utf-8")
    plot(found, arguments.docs / "evaluation-fidelity.png")


if __name__ == "__main__":
    main()
