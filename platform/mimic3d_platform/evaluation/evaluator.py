"""What a run measures of its generator: Fréchet distance and agreement of views, of either branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset import open_dataset, read_cameras
from mimic3d_platform.data.stream.row_reader import RowReader
from mimic3d_platform.evaluation import feature_weights

if TYPE_CHECKING:
    import torch

    from mimic3d.config import Config
    from mimic3d.evaluation.consistency import Agreement
    from mimic3d.evaluation.frechet import FeatureStatistics
    from mimic3d.networks.generator import Generator

METRIC_SEED = 0
BATCH = 16
FEATURES_FOLDER = "features"


class Evaluator:
    """Measures generators against one data set; the ranks of a process group share the work.

    Args:
        config: of the run; `output.metric_images` and `metric_identities` say how much is drawn.
        network: the feature extractor, as `mimic3d weights` names it.
        cache_uri: where the features of the real images are kept from one run to the next.
        device: of the extractor.
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
        import torch

        from mimic3d.features.pooled import load_extractor
        from mimic3d.networks.precision import allow_tf32

        allow_tf32(config.model.allow_tf32)
        self._output, self._rank, self._world_size = config.output, rank, world_size
        self._patience_s = patience_s
        self._uri, self._cache_bytes = config.data.uri, config.data.cache_bytes
        self.manifest = open_dataset(self._uri)
        self.cameras = torch.from_numpy(read_cameras(self._uri))
        self._extractor = load_extractor(feature_weights.resolve(network), network).to(device)
        self._device = device
        self._reals_uri = storage.join(
            cache_uri, FEATURES_FOLDER, f"{self.manifest.fingerprint}-{self._extractor.name}.safetensors"
        )
        self._reals: FeatureStatistics | None = None
        self._reals_root: torch.Tensor | None = None

    def measure(self, generator: Generator) -> dict[str, float]:
        """All metrics, under their names; every rank gets them."""
        from mimic3d.evaluation.frechet import frechet_name
        from mimic3d.evaluation.generated import generated_statistics

        mine = range(self._rank, self._output.metric_images, self._world_size)
        parts = generated_statistics(
            generator, self._extractor, self.cameras, mine, seed=METRIC_SEED, batch=BATCH
        )
        metrics = {
            frechet_name(self._extractor.name, branch): self._distance_from_reals(part)
            for branch, part in parts.items()
        }
        for branch in parts:
            metrics |= self._agreement(generator, branch).metrics(branch)
        return metrics

    def measure_more(self, generator: Generator) -> dict[str, float]:
        """What takes as long again: kernel distance, precision and recall, and FID3D; every rank gets them.

        The first three compare as many real images as are generated. FID3D's generator is told another
        camera than its images are seen from.
        """
        import torch

        from mimic3d.evaluation import frechet
        from mimic3d.evaluation.generated import generated_images, generated_statistics
        from mimic3d.evaluation.precision_recall import precision_recall

        name = self._extractor.name
        mine = range(self._rank, self._output.metric_images, self._world_size)
        drawn: dict[str, list[torch.Tensor]] = {branch: [] for branch in generator.branches}
        options = {"seed": METRIC_SEED, "batch": BATCH}
        for images in generated_images(generator, self.cameras, mine, **options):
            for branch, batch in images.items():
                drawn[branch].append(self._features(batch.numpy()).cpu())
        rows = np.array([row for row in mine if row < self.manifest.count])
        reader = RowReader(self._uri, self.manifest, self._cache_bytes, patience_s=self._patience_s)
        batches = np.array_split(rows, max(1, len(rows) // BATCH))
        reals = torch.cat([self._features(reader.read(batch)[0]).cpu() for batch in batches])
        reals = torch.cat(self._gather(reals))
        metrics: dict[str, float] = {}
        for branch, parts in drawn.items():
            features = torch.cat(self._gather(torch.cat(parts)))
            metrics[frechet.kernel_name(name, branch)] = frechet.kernel_distance(reals, features)
            metrics |= precision_recall(reals, features).metrics(name, branch)
        other = generated_statistics(
            generator, self._extractor, self.cameras, mine, other_camera=True, **options
        )
        for branch, part in other.items():
            metrics[frechet.frechet_name(name, branch, other_camera=True)] = self._distance_from_reals(part)
        return metrics

    def _distance_from_reals(self, part: FeatureStatistics) -> float:
        """The Fréchet distance of what the ranks have gathered, this one `part` of it."""
        from mimic3d.evaluation.frechet import covariance_root, frechet_distance

        reals = self._real_statistics()
        if self._reals_root is None:
            self._reals_root = covariance_root(reals)
        return frechet_distance(reals, self._merge(part), self._reals_root)

    def _real_statistics(self) -> FeatureStatistics:
        """Of all real images: computed once for a data set and an extractor, then read."""
        from mimic3d.evaluation.frechet import FeatureStatistics

        if self._reals is None:
            # One rank looks, so that all agree, whatever another run writes meanwhile.
            uri, patience_s = self._reals_uri, self._patience_s
            if self._gather(self._rank == 0 and storage.exists(uri, patience_s=patience_s))[0]:
                self._reals = FeatureStatistics.from_bytes(storage.read_bytes(uri, patience_s=patience_s))
            else:
                reader = RowReader(self._uri, self.manifest, self._cache_bytes, patience_s=self._patience_s)
                rows = np.arange(self._rank, self.manifest.count, self._world_size)
                batches = np.array_split(rows, max(1, len(rows) // BATCH))
                features = (self._features(reader.read(batch)[0]) for batch in batches)
                self._reals = self._merge(FeatureStatistics.of(features, self._extractor.dim))
                if self._rank == 0:
                    storage.write_bytes(uri, self._reals.to_bytes(), patience_s=patience_s)
        return self._reals

    def _features(self, images: np.ndarray) -> torch.Tensor:
        import torch

        with torch.no_grad():
            return self._extractor(torch.from_numpy(images).to(self._device))

    def _agreement(self, generator: Generator, branch: str) -> Agreement:
        import torch

        from mimic3d.evaluation.consistency import Agreement, view_agreement
        from mimic3d.randomness import counter_generator

        total = Agreement(0.0, 0, 0)
        device = next(generator.parameters()).device
        for index in range(self._rank, self._output.metric_identities, self._world_size):
            source = counter_generator(METRIC_SEED, "agreement", index)
            z = torch.randn(1, generator.config.z_dim, generator=source).to(device)
            pick = torch.randint(len(self.cameras), (1,), generator=source)
            camera = self.cameras[pick].to(device)
            with torch.no_grad():
                found = view_agreement(generator, generator.mapping(z, camera), camera, branch)
            total = total.plus(found)
        parts = self._gather(tuple(total))
        return Agreement(*(sum(values) for values in zip(*parts, strict=True)))

    def _merge(self, part: FeatureStatistics) -> FeatureStatistics:
        from mimic3d.evaluation.frechet import FeatureStatistics

        merged, *others = map(FeatureStatistics.from_bytes, self._gather(part.to_bytes()))
        for other in others:
            merged.merge(other)
        return merged

    def _gather(self, value: object) -> list:
        """The value of every rank, in their order."""
        if self._world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list = [None] * self._world_size
        dist.all_gather_object(values, value)
        return values
