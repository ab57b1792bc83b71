"""Fréchet and kernel distances between the features of real and generated images.

FID (Heusel et al., 2017) is the Fréchet distance between normal distributions fitted to the two sets of
features; KID (Binkowski et al., 2018) is a squared maximum mean discrepancy with a cubic kernel. The metrics
have these names on the Inception of 2015 only; on other features they are `fd_…` and `kd_…`. CMMD is a
maximum mean discrepancy of CLIP's features with a Gaussian kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def frechet_name(extractor: str, branch: str, other_camera: bool = False) -> str:
    """The metric's name, of extractor and branch: `fid_inception2015/3d` or `fd_mobilenetv2/2d`.

    With `other_camera` it is CGS-GAN's FID3D, `fid3d_inception2015/3d`: the generator was conditioned on
    another camera than the one that the image was rendered from.
    """
    kind = "fid" if extractor == "inception2015" else "fd"
    return f"{kind}{'3d' if other_camera else ''}_{extractor}/{branch}"


@dataclass
class FeatureStatistics:
    """Count, mean and scatter of a set of features, in float64; adds batches, merges across workers.

    Attributes:
        count: of images.
        mean: (D,).
        scatter: (D, D), the sum of outer products of deviations from the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dim: int) -> FeatureStatistics:
        """The statistics of no image."""
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def of(cls, batches: Iterable[Tensor], dim: int) -> FeatureStatistics:
        """The statistics of all rows of `batches`, each (n, dim)."""
        result = cls.empty(dim)
        for batch in batches:
            result.add(batch)
        return result

    def add(self, features: Tensor) -> None:
        """Adds the features of n images, (n, D)."""
        features = features.detach().to("cpu", torch.float64)
        if len(features):
            mean = features.mean(dim=0)
            deviations = features - mean
            self.scatter.addmm_(deviations.T, deviations)
            self._add_mean(len(features), mean)

    def merge(self, other: FeatureStatistics) -> None:
        """Adds the images of another worker's statistics."""
        if other.count:
            self.scatter += other.scatter
            self._add_mean(other.count, other.mean)

    def _add_mean(self, count: int, mean: Tensor) -> None:
        """Adds `count` images with this mean, whose scatter is already added (Chan et al.'s update)."""
        total = self.count + count
        difference = mean - self.mean
        self.scatter.addr_(difference, difference, alpha=self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """(D, D), unbiased.

        Raises:
            ValueError: fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images; there are {self.count}")
        return self.scatter / (self.count - 1)

    def to_bytes(self) -> bytes:
        """The content of a safetensors file, which `from_bytes` reads back exactly."""
        from safetensors.torch import save

        return save({"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter})

    @classmethod
    def from_bytes(cls, data: bytes) -> FeatureStatistics:
        """The statistics that `to_bytes` has written."""
        from safetensors.torch import load

        tensors = load(data)
        return cls(int(tensors["count"]), tensors["mean"], tensors["scatter"])


def covariance_root(a: FeatureStatistics) -> Tensor:
    """(D, D), the symmetric square root of the covariance."""
    values, vectors = torch.linalg.eigh(a.covariance())
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics, root: Tensor | None = None) -> float:
    """|μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½), the squared Fréchet distance of two normal distributions.

    The trace of the root is that of the symmetric (Σa^½ Σb Σa^½)^½, by eigenvalues, which stays real and
    exact for singular covariances, of fewer images than features.

    Args:
        root: `covariance_root(a)`, which is most of the work: to compare `a` with several others.
    """
    root = covariance_root(a) if root is None else root
    product = root @ b.covariance() @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    trace = a.covariance().trace() + b.covariance().trace() - 2 * cross
    return float((a.mean - b.mean).square().sum() + trace)


def kernel_distance(a: Tensor, b: Tensor, block: int = 4096) -> float:
    """The unbiased squared MMD of features (n, D) and (m, D) with the kernel (x·y / D + 1)³; may be negative.

    It is computed on all pairs, in blocks of rows that bound memory, not as a mean over random subsets.
    """
    a, b = a.double(), b.double()

    def kernel_sum(x: Tensor, y: Tensor) -> Tensor:
        return sum(((rows @ y.T / x.shape[1] + 1) ** 3).sum() for rows in x.split(block))

    def within(x: Tensor) -> Tensor:
        diagonal = ((x.square().sum(dim=1) / x.shape[1] + 1) ** 3).sum()
        return (kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel_sum(a, b) / (len(a) * len(b)))


def gaussian_kernel_distance(
    a: Tensor, b: Tensor, bandwidth: float = 10.0, scale: float = 1000.0, block: int = 4096
) -> float:
    """`scale` times the squared MMD of unit vectors (n, D) and (m, D) with a Gaussian kernel: CMMD.

    As published (Jayasumana et al., 2024, sec. 4), it has the diagonals in it, so it is not negative.
    """
    a, b = F.normalize(a.double()), F.normalize(b.double())

    def mean(x: Tensor, y: Tensor) -> float:
        # Of unit vectors, the squared distance is 2 - 2 x·y. That of the kernel from 1 is kept, being small.
        total = sum(torch.expm1((rows @ y.T - 1) / bandwidth**2).sum() for rows in x.split(block))
        return float(total) / (len(x) * len(y))

    return scale * (mean(a, a) + mean(b, b) - 2 * mean(a, b))
