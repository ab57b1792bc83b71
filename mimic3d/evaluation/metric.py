"""The adapter that every metric implements: what it needs, how its parts merge, and what fools it.

To add a metric: write a subclass of `FidelityMetric` or `ViewMetric` in a file of this folder, and list an
instance in `registry.METRICS`. `mimic3d evaluate`, its table, MLflow and docs/evaluation.md follow.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mimic3d.evaluation.face_pose import FaceModel
from mimic3d.evaluation.frechet import FeatureStatistics, covariance_root
from mimic3d.randomness import counter_generator

Need = Literal[
    "images",
    "two cameras",
    "truncation",
    "cameras",
    "orbit",
    "depth",
    "both branches",
    "field",
    "density",
    "known shapes",
    "face model",
]
Direction = Literal["up", "down"]

ARROWS: Mapping[Direction, str] = {"up": "↑", "down": "↓"}
# The extractor on which the published metrics are defined.
PROTOCOL_EXTRACTOR = "inception2015"
RESAMPLES = 200
BLOCKS = 10
# The 97.5 % quantile of Student's t with BLOCKS - 1 degrees of freedom.
_T_QUANTILE = 2.262


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its 95 % interval.

    Attributes:
        low, high: of the interval; the sampling of images or identities is its only source of error.
        samples: images or identities that the value is of.
        note: what a reader has to know beside the number; "" for nothing.
    """

    value: float
    low: float
    high: float
    samples: int
    note: str = ""


@dataclass(frozen=True)
class FeatureSets:
    """Features of real and of generated images, all of one extractor of D dimensions.

    Attributes:
        extractor: its name in metrics.
        reals: (n, D), of some real images.
        real_statistics: of all real images.
        generated: (m, D).
        other_camera: (m, D), of images whose generator was conditioned on another camera; None where there
            are none.
    """

    extractor: str
    reals: Tensor
    real_statistics: FeatureStatistics
    generated: Tensor
    other_camera: Tensor | None = None

    @functools.cached_property
    def real_root(self) -> Tensor:
        """(D, D), the square root of the reals' covariance, which takes most of a Fréchet distance."""
        return covariance_root(self.real_statistics)


@dataclass(frozen=True, eq=False)
class Views:
    """V views of one object.

    Attributes:
        images: (V, 3, R, R) in [-1, 1].
        cameras: (V, 25).
        box: side of the box that holds the object, world units.
        depth: (V, 1, R, R), distance along the ray in world units; None where it is unknown.
        opacity: (V, 1, R, R) in [0, 1], the object's share of a pixel; None with `depth`.
        orbit: whether the cameras are evenly spaced along an orbit, in order.
        imitated: (V, 3, R, R) in [-1, 1], the 2D branch's images of the same views; None if there are none.
        perceptual: (N,) distances of (N, 3, R, R) images in [-1, 1] from others; None if there is no network.
        face_model: finds the face in an image; None if there is none. See `face_pose`.
    """

    images: Tensor
    cameras: Tensor
    box: float
    depth: Tensor | None = None
    opacity: Tensor | None = None
    orbit: bool = False
    imitated: Tensor | None = None
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    face_model: FaceModel | None = None


class Metric(ABC):
    """One measurement.

    Attributes:
        needs: what a subject must have; the metric is left out for a subject that lacks any of it.
        direction: up where higher is better.
        range: of its values, in words.
        about: what it measures, in a sentence of the docs' table.
        fooled_by: what makes it good without the images being good.
    """

    needs: ClassVar[tuple[Need, ...]]
    direction: ClassVar[Direction]
    range: ClassVar[str]
    about: ClassVar[str]
    fooled_by: ClassVar[str]

    @abstractmethod
    def name(self, extractor: str) -> str:
        """The name without the branch, such as `fid_inception2015` or `warp_psnr`."""


class FidelityMetric(Metric):
    """A distance between the features of real and generated images. Parts merge by concatenation."""

    kind: ClassVar[str]
    """Begins the name, before the extractor's."""
    protocol_kind: ClassVar[str | None] = None
    """In place of `kind` on the extractor of the published protocol."""
    of_all_images: ClassVar[bool] = False
    """True if any number of images can be merged; metrics that compare pairs take a bounded number."""
    extractor: ClassVar[str | None] = None
    """The only extractor on whose features it is defined, by its name in metrics; None for any."""

    def name(self, extractor: str) -> str:
        protocol = extractor == PROTOCOL_EXTRACTOR and self.protocol_kind
        return f"{protocol or self.kind}_{extractor}"

    @abstractmethod
    def estimate(self, features: FeatureSets) -> Estimate:
        """The metric of generated images.

        Raises:
            ValueError: too few images.
        """


class ViewMetric(Metric):
    """A property of the views of one object. Parts are sums over an object, and merge by addition."""

    kind: ClassVar[str]
    network: ClassVar[str | None] = None
    """The perceptual distance that it takes from `Views.perceptual`, as `mimic3d weights` names it."""

    def name(self, extractor: str) -> str:
        return self.kind

    def can_measure(self, views: Views) -> bool:
        """Whether views have all that the metric needs; a field can be fitted to any."""
        has = {"images", "cameras", "field"}
        has |= {"depth"} if views.depth is not None else set()
        has |= {"orbit"} if views.orbit else set()
        has |= {"both branches"} if views.imitated is not None else set()
        has |= {"face model"} if views.face_model is not None else set()
        return set(self.needs) <= has

    @abstractmethod
    def part(self, views: Views) -> Sequence[float]:
        """The sums over the views of one object, from which `value` is computed."""

    @abstractmethod
    def value(self, sums: Tensor) -> float:
        """The metric of (K,) float64 sums over objects; NaN where nothing could be compared."""

    def estimate(self, parts: Tensor, seed: int) -> Estimate:
        """The metric over all objects, with a bootstrap interval that resamples objects.

        Args:
            parts: (objects, K), float64.
            seed: of the bootstrap.
        Raises:
            ValueError: no object could be compared.
        """
        return self._bootstrap(lambda rows: self.value(parts[rows].sum(dim=0)), len(parts), seed)

    def difference(self, parts: Tensor, others: Tensor, seed: int) -> Estimate:
        """How much higher the metric is than another branch's, of the same objects, with an interval.

        The interval is of objects resampled for both at once: what is hard about an object counts in neither,
        so it is narrower than the intervals of both branches suggest.

        Args:
            parts, others: (objects, K), float64, of the same objects.
            seed: of the bootstrap.
        Raises:
            ValueError: no object could be compared in a branch.
        """
        return self._bootstrap(
            lambda rows: self.value(parts[rows].sum(dim=0)) - self.value(others[rows].sum(dim=0)),
            len(parts),
            seed,
        )

    def _bootstrap(self, value_of: Callable[[Tensor], float], objects: int, seed: int) -> Estimate:
        """The value of all objects, with an interval from those of objects (n,) drawn with replacement."""
        value = value_of(torch.arange(objects))
        if not math.isfinite(value):
            raise ValueError("too few views of any object could be compared")
        source = counter_generator(seed, f"bootstrap {self.kind}")
        rows = torch.randint(objects, (RESAMPLES, objects), generator=source)
        resampled = torch.tensor([value_of(row) for row in rows], dtype=torch.float64)
        resampled = resampled[resampled.isfinite()]
        low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        note = f"of {objects} objects only" if objects < 8 else ""
        return Estimate(value, min(low, value), max(high, value), objects, note)


class RatioMetric(ViewMetric):
    """A metric whose parts are a sum and what it is divided by, such as a number of pixels."""

    def value(self, sums: Tensor) -> float:
        return float(sums[0] / sums[1]) if sums[1] > 0 else math.nan


def bootstrap_mean(values: Tensor, note: str = "") -> Estimate:
    """The mean of (n,) values with a bootstrap interval."""
    values = values.double()
    source = counter_generator(0, "bootstrap mean")
    count = len(values)
    means = torch.stack(
        [values[torch.randint(count, (count,), generator=source)].mean() for _ in range(RESAMPLES)]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float(values.mean()), low, high, count, note)


def jackknife(value: float, without_block: Sequence[float], samples: int, note: str = "") -> Estimate:
    """An interval from the values without one of `BLOCKS` blocks of the images each (Quenouille, Tukey).

    A bootstrap repeats images, which biases Fréchet and kernel distances upwards; leaving out does not.
    """
    parts = torch.tensor(without_block, dtype=torch.float64)
    count = len(parts)
    error = float(((parts - parts.mean()).square().sum() * (count - 1) / count).sqrt())
    return Estimate(value, value - _T_QUANTILE * error, value + _T_QUANTILE * error, samples, note)


def without_each_block(features: Tensor, distance: Callable[[Tensor], float]) -> list[float]:
    """The distance of all rows but those of each of `BLOCKS` blocks, interleaved."""
    blocks = torch.arange(len(features)) % min(BLOCKS, len(features))
    return [distance(features[blocks != block]) for block in range(int(blocks.max()) + 1)]
