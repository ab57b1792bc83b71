"""Metrics that compare features of generated images with those of real ones."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mimic3d.evaluation.frechet import (
    FeatureStatistics,
    frechet_distance,
    gaussian_kernel_distance,
    kernel_distance,
)
from mimic3d.evaluation.metric import (
    BLOCKS,
    Estimate,
    FeatureSets,
    FidelityMetric,
    bootstrap_mean,
    jackknife,
    without_each_block,
)
from mimic3d.evaluation.neighbours import ball_radii, balls_around, balls_hit, nearest_centres


def _frechet_estimate(features: FeatureSets, generated: Tensor) -> Estimate:
    count, dim = generated.shape
    if count < 2:
        raise ValueError("a covariance needs at least 2 images")
    note = f"{count} images for {dim} dimensions: biased upwards" if count < 2 * dim else ""
    if count < 2 * BLOCKS:
        value = _distance(features, generated)
        return Estimate(value, value, value, count, f"{note}; too few images for an interval")
    if count < dim:
        value = _distance(features, generated)
        without = without_each_block(generated, lambda rows: _distance(features, rows))
        return jackknife(value, without, count, note)
    # Of many images, the statistics of the blocks are merged: no image is added up twice.
    blocks = [FeatureStatistics.of([generated[block::BLOCKS]], dim) for block in range(BLOCKS)]

    def distance(skipped: int | None) -> float:
        total = FeatureStatistics.empty(dim)
        for index, block in enumerate(blocks):
            if index != skipped:
                total.merge(block)
        return frechet_distance(features.real_statistics, total, features.real_root)

    return jackknife(distance(None), [distance(block) for block in range(BLOCKS)], count, note)


def _distance(features: FeatureSets, generated: Tensor) -> float:
    """`frechet_distance` of the reals and (n, D) features; of fewer images than dimensions, by n×n matrices.

    The eigenvalues of R S R, S the covariance XᵀX / (n - 1), are those of (X R)(X R)ᵀ / (n - 1) and zeros.
    """
    count, dim = generated.shape
    reals = features.real_statistics
    if count >= dim:
        statistics = FeatureStatistics.of([generated], dim)
        return frechet_distance(reals, statistics, features.real_root)
    rows = generated.double()
    centred = rows - rows.mean(dim=0)
    product = centred @ features.real_root
    values = torch.linalg.eigvalsh(product @ product.T / (count - 1)).clamp(min=0)
    trace = reals.covariance().trace() + centred.square().sum() / (count - 1)
    mean = (reals.mean - rows.mean(dim=0)).square().sum()
    return float(mean + trace - 2 * values.sqrt().sum())


class FrechetDistance(FidelityMetric):
    kind, protocol_kind = "fd", "fid"
    of_all_images = True
    needs = ("images",)
    direction = "down"
    range = "0 to ∞"
    about = "Fréchet distance between all real images and the generated ones (FID: Heusel et al., 2017)"
    fooled_by = "few images (biased upwards); copies of the reals; faults that the extractor ignores"

    def estimate(self, features: FeatureSets) -> Estimate:
        return _frechet_estimate(features, features.generated)


class OtherCameraFrechetDistance(FidelityMetric):
    kind, protocol_kind = "fd3d", "fid3d"
    of_all_images = True
    needs = ("images", "two cameras")
    direction = "down"
    range = "0 to ∞"
    about = (
        "the same, of images whose generator was conditioned on another camera than the one rendered "
        "(FID₃D: CGS-GAN, 2025)"
    )
    fooled_by = "as fid"

    def estimate(self, features: FeatureSets) -> Estimate:
        if features.other_camera is None:
            raise ValueError("no image is rendered from another camera than the generator was conditioned on")
        return _frechet_estimate(features, features.other_camera)


class KernelDistance(FidelityMetric):
    kind = "kd"
    protocol_kind: ClassVar[str | None] = "kid"
    needs = ("images",)
    direction = "down"
    range = "about 0 to ∞; unbiased, so it may be negative"
    about = "squared maximum mean discrepancy with a cubic kernel (KID: Bińkowski et al., 2018)"
    fooled_by = "copies of the reals; faults that the extractor ignores"

    def estimate(self, features: FeatureSets) -> Estimate:
        reals, generated = features.reals, features.generated
        if min(len(reals), len(generated)) < 2 * BLOCKS:
            raise ValueError(f"a kernel distance with an interval needs {2 * BLOCKS} images of either kind")
        without = without_each_block(generated, lambda rows: self.distance(reals, rows))
        return jackknife(self.distance(reals, generated), without, len(generated))

    def distance(self, reals: Tensor, generated: Tensor) -> float:
        """The kernel distance of (n, D) and (m, D) features."""
        return kernel_distance(reals, generated)


class ClipKernelDistance(KernelDistance):
    kind, protocol_kind, extractor = "cmmd", None, "clipvitl14"
    range = "0 to ∞"
    about = (
        "maximum mean discrepancy of CLIP's embeddings with a Gaussian kernel of bandwidth 10, times 1000 "
        "(CMMD: Jayasumana et al., 2024)"
    )
    fooled_by = "copies of the reals; faults that CLIP ignores"

    def distance(self, reals: Tensor, generated: Tensor) -> float:
        return gaussian_kernel_distance(reals, generated)


class Precision(FidelityMetric):
    kind = "precision"
    needs = ("images",)
    direction = "up"
    range = "0 to 1"
    about = "share of generated images within the reals' manifold, k = 3 (Kynkäänniemi et al., 2019)"
    fooled_by = "outliers among the reals; a few good images, repeated"
    neighbours = 3

    def estimate(self, features: FeatureSets) -> Estimate:
        radii = ball_radii(features.reals, self.neighbours)
        return bootstrap_mean(balls_around(features.generated, features.reals, radii) > 0)


class Recall(FidelityMetric):
    kind = "recall"
    needs = ("images",)
    direction = "up"
    range = "0 to 1"
    about = "share of real images within the generated images' manifold, k = 3"
    fooled_by = "outliers among the generated images, which widen their manifold"
    neighbours = 3

    def estimate(self, features: FeatureSets) -> Estimate:
        radii = ball_radii(features.generated, self.neighbours)
        return bootstrap_mean(balls_around(features.reals, features.generated, radii) > 0)


class Density(FidelityMetric):
    kind = "density"
    needs = ("images",)
    direction = "up"
    range = "0 to about 1; above 1 if images concentrate where reals are densest"
    about = "number of reals whose ball (k = 5) holds a generated image, over k (Naeem et al., 2020)"
    fooled_by = "a few typical images, repeated"
    neighbours = 5

    def estimate(self, features: FeatureSets) -> Estimate:
        radii = ball_radii(features.reals, self.neighbours)
        counts = balls_around(features.generated, features.reals, radii)
        return bootstrap_mean(counts / self.neighbours)


class Coverage(FidelityMetric):
    kind = "coverage"
    needs = ("images",)
    direction = "up"
    range = "0 to 1; grows with the number of generated images"
    about = "share of reals whose ball (k = 5) holds a generated image (Naeem et al., 2020)"
    fooled_by = "more images than the other subject has"
    neighbours = 5

    def estimate(self, features: FeatureSets) -> Estimate:
        radii = ball_radii(features.reals, self.neighbours)
        return bootstrap_mean(balls_hit(features.generated, features.reals, radii))


class Authenticity(FidelityMetric):
    kind = "authenticity"
    needs = ("images",)
    direction = "up"
    range = "0 to 1; 0 for copies of the reals, above 0.5 for other images of their distribution"
    about = (
        "share of generated images that are farther from their nearest real than this real is from its own "
        "nearest real; memorisation lowers it (Alaa et al., 2022)"
    )
    fooled_by = "bad images, which are far from every real: read it beside precision"

    def estimate(self, features: FeatureSets) -> Estimate:
        radii = ball_radii(features.reals, 1)
        distances, nearest = nearest_centres(features.generated, features.reals)
        return bootstrap_mean(distances > radii[nearest])
