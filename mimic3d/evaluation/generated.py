"""The generated images that Fréchet and kernel distances, precision and recall are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mimic3d.evaluation.frechet import FeatureStatistics, covariance_root, frechet_distance, frechet_name
from mimic3d.features.pooled import FeatureExtractor
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator
from mimic3d.randomness import counter_generator
from mimic3d.rendering.images import to_uint8


@torch.no_grad()
def generated_images(
    G: Generator,
    cameras: Tensor,
    indices: Sequence[int],
    *,
    seed: int,
    branches: Sequence[str] | None = None,
    batch: int = 8,
    max_points: int = DEFAULT_MAX_POINTS,
    other_camera: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """The images that metrics judge: no truncation, cameras drawn from the data, G told the same camera.

    With `other_camera` G is told another one, drawn likewise: a generator that bakes the camera into the
    object, instead of turning it, is found out (CGS-GAN's FID3D).

    Image i is a function of (seed, i) alone, so workers may share out `indices` in any way.

    Args:
        cameras: (M, 25), all labels of the data set.
        indices: which of the images to draw.
        branches: any of "2d" and "3d", drawn from one tri-plane; all that the generator has by default.
    Yields:
        by branch, (n, 3, R, R) uint8, n at most `batch`.
    """
    branches = branches or G.branches
    device = next(G.parameters()).device
    for start in range(0, len(indices), batch):
        sources = [counter_generator(seed, "metric", i) for i in indices[start : start + batch]]
        z = torch.stack([torch.randn(G.config.z_dim, generator=source) for source in sources])
        picked = [int(torch.randint(len(cameras), (), generator=source)) for source in sources]
        camera = cameras[picked].to(device)
        told = camera
        if other_camera:
            picked = [int(torch.randint(len(cameras), (), generator=source)) for source in sources]
            told = cameras[picked].to(device)
        w = G.mapping(z.to(device), told)
        planes = G.planes(w, detail="3d" in branches, noise="const")
        yield {
            branch: to_uint8(G.view(planes, w, camera, branch, max_points).image).cpu() for branch in branches
        }


def generated_statistics(
    G: Generator, extractor: FeatureExtractor, cameras: Tensor, indices: Sequence[int], **options: object
) -> dict[str, FeatureStatistics]:
    """By branch, the feature statistics of `generated_images(G, cameras, indices, **options)`."""
    result: dict[str, FeatureStatistics] = {}
    for drawn in generated_images(G, cameras, indices, **options):
        for branch, images in drawn.items():
            statistics = result.setdefault(branch, FeatureStatistics.empty(extractor.dim))
            statistics.add(extractor(images.to(next(extractor.buffers()).device)))
    return result


def frechet_of_generator(
    G: Generator,
    extractor: FeatureExtractor,
    cameras: Tensor,
    reals: FeatureStatistics,
    count: int,
    **options: object,
) -> dict[str, float]:
    """The Fréchet distance of each branch from all reals, under the names of `frechet_name`.

    Args:
        cameras: (M, 25), all labels of the data set.
        reals: features of every real image.
        count: images to generate (50 000 in publications).
        options: of `generated_images`.
    """
    generated = generated_statistics(G, extractor, cameras, range(count), **options)
    root = covariance_root(reals)
    return {
        frechet_name(extractor.name, branch): frechet_distance(reals, statistics, root)
        for branch, statistics in generated.items()
    }
