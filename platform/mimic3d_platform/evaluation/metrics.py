"""The metrics that a run measures as it trains: Fréchet distance and agreement of views.

They are few, because the workers wait for them; `evaluate` measures all of `mimic3d.evaluation.registry`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from mimic3d.config import Config
from mimic3d.evaluation import frechet
from mimic3d.evaluation.frechet import FeatureStatistics
from mimic3d.evaluation.generated import generated_images, statistics_by_branch
from mimic3d.evaluation.registry import TRAINING_VIEWS
from mimic3d.evaluation.views import two_views
from mimic3d.features.registry import load_extractor
from mimic3d.networks.generator import Generator
from mimic3d.networks.precision import allow_tf32
from mimic3d.randomness import counter_generator
from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset import open_dataset, read_cameras
from mimic3d_platform.data.stream.row_reader import RowReader
from mimic3d_platform.evaluation import feature_weights

Value = TypeVar("Value")

METRIC_SEED = 0
BATCH = 16
FEATURES_FOLDER = "features"


class Evaluator:
    """Measures generators against one data set; the ranks of a process group share the work.

    Args:
        config: of the run; `output.metric_images` and `output.metric_identities` say how much is generated.
        network: the feature network, as `mimic3d weights` names it.
        cache_uri: the folder where statistics of real images' features are kept between runs.
        device: of the feature network.
        patience_s: how long transient errors of storage are retried; the settings' if not given.
    """

    def __init__(
        self,
        config: Config,
        network: str,
        cache_uri: str,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        *,
        patience_s: float | None = None,
    ) -> None:
        allow_tf32(config.model.allow_tf32)
        self._output, self._rank, self._world_size = config.output, rank, world_size
        self._patience_s = patience_s
        self._data = config.data
        self.manifest = open_dataset(config.data.uri)
        self.cameras = torch.from_numpy(read_cameras(config.data.uri))
        self._extractor = load_extractor(feature_weights.resolve(network), network).to(device)
        self._device = device
        self._reals_uri = storage.join(
            cache_uri, FEATURES_FOLDER, f"{self.manifest.fingerprint}-{self._extractor.name}.safetensors"
        )
        self._reals: FeatureStatistics | None = None
        self._reals_root: torch.Tensor | None = None

    @property
    def _own_images(self) -> range:
        """The numbers of the images that this rank generates."""
        return range(self._rank, self._output.metric_images, self._world_size)

    def measure(self, generator: Generator) -> dict[str, float]:
        """The metrics of a run: Fréchet distance and agreement of views, by name; every rank gets them."""
        images = generated_images(generator, self.cameras, self._own_images, seed=METRIC_SEED, batch=BATCH)
        parts = statistics_by_branch(self._extractor, images, generator.branches)
        metrics = {
            frechet.frechet_name(self._extractor.name, branch): self._distance_from_reals(part)
            for branch, part in parts.items()
        }
        for branch in parts:
            metrics |= self._agreement(generator, branch)
        return metrics

    def _distance_from_reals(self, part: FeatureStatistics) -> float:
        """The Fréchet distance between all real images and those that all ranks generated.

        Args:
            part: of the images that this rank generated.
        """
        reals = self._real_statistics()
        if self._reals_root is None:
            self._reals_root = frechet.covariance_root(reals)
        return frechet.frechet_distance(reals, self._merge(part), self._reals_root)

    def _real_statistics(self) -> FeatureStatistics:
        """The statistics of all real images, computed once for a data set and a feature network."""
        if self._reals is None:
            # Rank 0 alone looks, so that all ranks agree even if another run writes them meanwhile.
            if stored := self._gather(self._stored_reals() if self._rank == 0 else b"")[0]:
                self._reals = FeatureStatistics.from_bytes(stored)
            else:
                rows = range(self._rank, self.manifest.count, self._world_size)
                part = FeatureStatistics.of(self._features_of_reals(rows), self._extractor.dim)
                self._reals = self._merge(part)
                if self._rank == 0:
                    content = self._reals.to_bytes()
                    storage.write_bytes(self._reals_uri, content, patience_s=self._patience_s)
        return self._reals

    def _stored_reals(self) -> bytes:
        """The statistics that another run has stored; nothing if there are none, or they are damaged."""
        if not storage.exists(self._reals_uri, patience_s=self._patience_s):
            return b""
        content = storage.read_bytes(self._reals_uri, patience_s=self._patience_s)
        try:
            FeatureStatistics.from_bytes(content)
        except (SafetensorError, KeyError):
            return b""
        return content

    def _features_of_reals(self, rows: Sequence[int]) -> Iterator[torch.Tensor]:
        """(n, D) features of the data set's images with these numbers, in batches."""
        if not rows:
            return
        with contextlib.closing(
            RowReader(
                self._data.uri,
                self.manifest,
                self._data.cache_bytes,
                skip_bad=self._data.max_bad_images > 0,
                patience_s=self._patience_s,
            )
        ) as reader:
            for batch in np.array_split(np.array(rows), max(1, len(rows) // BATCH)):
                yield self._features(torch.from_numpy(reader.read(batch)[0]))

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, D) features of (n, 3, R, R) uint8 images."""
        with torch.no_grad():
            return self._extractor(images.to(self._device))

    def _agreement(self, generator: Generator, branch: str) -> dict[str, float]:
        """How well views of the same identity agree, over `output.metric_identities` of them."""
        sums: dict[str, torch.Tensor] = {}
        device = next(generator.parameters()).device
        for index in range(self._rank, self._output.metric_identities, self._world_size):
            source = counter_generator(METRIC_SEED, "agreement", index)
            z = torch.randn(1, generator.config.z_dim, generator=source).to(device)
            pick = torch.randint(len(self.cameras), (1,), generator=source)
            camera = self.cameras[pick].to(device)
            with torch.no_grad():
                views = two_views(generator, generator.mapping(z, camera), camera, branch)
            for metric in TRAINING_VIEWS:
                part = torch.tensor(metric.part(views), dtype=torch.float64)
                sums[metric.kind] = sums[metric.kind] + part if metric.kind in sums else part
        # A rank without an identity has no sums.
        parts = [part for part in self._gather(sums) if part]
        found = {
            f"{metric.kind}/{branch}": metric.value(torch.stack([part[metric.kind] for part in parts]).sum(0))
            for metric in TRAINING_VIEWS
            if parts
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _merge(self, part: FeatureStatistics) -> FeatureStatistics:
        """The statistics of all ranks together."""
        merged, *others = map(FeatureStatistics.from_bytes, self._gather(part.to_bytes()))
        for other in others:
            merged.merge(other)
        return merged

    def _gather(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank."""
        if self._world_size == 1:
            return [value]
        values: list[Value | None] = [None] * self._world_size
        dist.all_gather_object(values, value)
        return [gathered for gathered in values if gathered is not None]
