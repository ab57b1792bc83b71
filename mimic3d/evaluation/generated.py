"""The generated images that Fréchet and kernel distances, precision and recall are measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mimic3d.evaluation.frechet import FeatureStatistics, covariance_root, frechet_distance, frechet_name
from mimic3d.features.extractor import FeatureExtractor
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator
from mimic3d.randomness import counter_generator
from mimic3d.rendering.images import to_uint8
from mimic3d.sample_noise import noise_of_images


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
    truncation: float = 1.0,
    noise: str = "random",
    jitter: bool = True,
) -> Iterator[dict[str, Tensor]]:
    """The images that metrics compare with the reals: noise and jitter as in training.

    Cameras are drawn from the data set's labels. Image i is a function of (seed, i) alone: it depends neither
    on the batch nor on how workers share the indices.

    Args:
        cameras: (M, 25), all labels of the data set.
        indices: of the images to generate.
        branches: any of "2d" and "3d", rendered from one tri-plane; all that the generator has by default.
        batch: images that are generated at a time.
        max_points: sample points in memory at a time; see `Generator.view`.
        other_camera: conditions the generator on another camera, drawn likewise, which penalises generators
            that make the object depend on the camera (CGS-GAN's FID3D).
        truncation: as `Mapping.forward`; metrics take none, which is 1.
        noise: of the planes, as `Generator.planes`; metrics take random noise.
        jitter: samples along rays are jittered, as metrics have them; otherwise they lie at fixed quantiles.
    Yields:
        by branch, (n, 3, R, R) uint8 on the CPU, n at most `batch`.
    """
    branches = branches or G.branches
    device = next(G.parameters()).device
    for start in range(0, len(indices), batch):
        images = indices[start : start + batch]
        sources = [counter_generator(seed, "metric", image) for image in images]
        z = torch.stack([torch.randn(G.config.z_dim, generator=source) for source in sources])
        camera = conditioning = _random_cameras(cameras, sources).to(device)
        if other_camera:
            conditioning = _random_cameras(cameras, sources).to(device)
        w = G.mapping(z.to(device), conditioning, truncation)
        with noise_of_images(seed, "metric", images):
            planes = G.planes(w, detail="3d" in branches, noise=noise)
            rendered = {
                branch: G.view(planes, w, camera, branch, max_points, stochastic=jitter).image
                for branch in branches
            }
        yield {branch: to_uint8(image).cpu() for branch, image in rendered.items()}


def _random_cameras(cameras: Tensor, sources: Sequence[torch.Generator]) -> Tensor:
    """(N, 25): for each source, one of `cameras` (M, 25)."""
    return cameras[[int(torch.randint(len(cameras), (), generator=source)) for source in sources]]


def statistics_by_branch(
    extractor: FeatureExtractor, images: Iterable[dict[str, Tensor]], branches: Sequence[str]
) -> dict[str, FeatureStatistics]:
    """By branch, the feature statistics of images from `generated_images`.

    Args:
        branches: of the images; each has statistics, also where there are no images.
    """
    statistics = {branch: FeatureStatistics.empty(extractor.dim) for branch in branches}
    device = next(extractor.buffers()).device
    for batch in images:
        for branch in branches:
            statistics[branch].add(extractor(batch[branch].to(device)))
    return statistics


def frechet_by_branch(
    extractor: FeatureExtractor,
    images: Iterable[dict[str, Tensor]],
    branches: Sequence[str],
    reals: FeatureStatistics,
) -> dict[str, float]:
    """The Fréchet distance of each branch from all reals, under the names of `frechet_name`.

    Args:
        images: from `generated_images` (50 000 in publications).
        branches: of the images.
        reals: feature statistics of every real image.
    """
    root = covariance_root(reals)
    return {
        frechet_name(extractor.name, branch): frechet_distance(reals, statistics, root)
        for branch, statistics in statistics_by_branch(extractor, images, branches).items()
    }
