"""The training stream: an endless iterator of a rank's batches, which can start at any number of images."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NamedTuple

import torch

from mimic3d.training.order import WINDOW_BYTES
from mimic3d_platform.data.format.dataset import check_trainable, open_dataset
from mimic3d_platform.data.stream.batches import BatchPlan
from mimic3d_platform.data.stream.cache_files import RowFile
from mimic3d_platform.data.stream.prefetcher import ShardPrefetcher
from mimic3d_platform.data.stream.process_loader import ProcessLoader
from mimic3d_platform.data.stream.shard_cache import CACHE_BYTES, cache_folder
from mimic3d_platform.data.stream.thread_loader import ThreadLoader
from mimic3d_platform.errors import UserError


class Batch(NamedTuple):
    """A rank's part of a global batch: images (n, 3, R, R) uint8 and cameras (n, 25) float32."""

    images: torch.Tensor
    cameras: torch.Tensor


class TrainingStream:
    """An endless iterator of `Batch`es whose order is a function of (seed, epoch, index) alone.

        for images, cameras in TrainingStream("s3://bucket/set", global_batch=32, seed=0):
            …

    Global batch k holds the positions [nimg + k·B, nimg + (k+1)·B) of an endless order in which every image
    occurs once per epoch; rank r gets the r-th of `world_size` equal slices. A stream that starts at any
    `nimg` therefore continues an earlier one exactly, and the world size only decides which rank gets which
    images. The state of a stream is `nimg` and the data set's fingerprint.

    Args:
        global_batch: B, images of all ranks' batches together.
        nimg: number of images that earlier streams gave to all ranks together.
        cache_bytes: limit of this machine's cache, which its processes share (`data.cache_bytes`).
        loaders: number of processes that read and decode; with 0 a thread does.
        max_bad_images: number of this rank's images that may be undecodable; the next good image of the same
            shard replaces each of them.
        patience_s: how long transient errors of storage are retried (`data.patience_s`); the settings'
            patience when None.
    Attributes:
        manifest: of the data set.
        nimg: number of images that all ranks have got, including those before the start.
        wait_seconds: time that `next` has waited for data so far.
        bad_images: number of different images that were replaced.
    Raises:
        UserError: as `open_dataset`; the arguments do not match one another or the data set. `next` raises it
            for a shard or image that cannot be used, and for storage that cannot be reached.
    """

    def __init__(
        self,
        uri: str,
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int,
        nimg: int = 0,
        cache_bytes: int = CACHE_BYTES,
        loaders: int = 1,
        max_bad_images: int = 0,
        patience_s: float | None = None,
    ) -> None:
        if global_batch < 1 or global_batch % world_size:
            raise UserError(
                f"a batch of {global_batch} cannot be split among {world_size} workers: change either"
            )
        if not 0 <= rank < world_size or nimg < 0:
            raise ValueError(f"rank {rank} of {world_size} at nimg {nimg} does not exist")
        self.manifest = open_dataset(uri)
        check_trainable(self.manifest, where=uri)
        self.nimg, self.wait_seconds, self.bad_images = nimg, 0.0, 0
        self._bad_rows: frozenset[int] = frozenset()
        self._uri, self._global_batch, self._max_bad = uri, global_batch, max_bad_images
        self._check_cache(cache_bytes)
        share = global_batch // world_size
        plan = BatchPlan(
            uri=uri,
            manifest=self.manifest,
            seed=seed,
            cache_folder=cache_folder(),
            cache_bytes=cache_bytes,
            skip_bad=max_bad_images > 0,
            patience_s=patience_s,
            first_position=nimg + rank * share,
            batch_size=share,
            stride=global_batch,
        )
        self._loader: ThreadLoader | ProcessLoader | None
        prefetcher = ShardPrefetcher(plan)
        prefetcher.prefetch(0, 0)
        self._loader = ProcessLoader(plan, prefetcher, loaders) if loaders else ThreadLoader(plan, prefetcher)

    @property
    def loader_restarts(self) -> int:
        """Number of loader processes that ended unexpectedly and were replaced."""
        return self._loader.restarts if self._loader else 0

    @property
    def loader_pids(self) -> list[int]:
        """The ids of the loader processes."""
        return self._loader.pids() if self._loader else []

    def __iter__(self) -> TrainingStream:
        return self

    def __next__(self) -> Batch:
        if self._loader is None:
            raise StopIteration
        started = time.perf_counter()
        try:
            batch = self._loader.next_batch()
        except BaseException:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - started
        self._count_bad(batch.bad_rows)
        self.nimg += self._global_batch
        return Batch(torch.from_numpy(batch.images), torch.from_numpy(batch.cameras))

    def close(self) -> None:
        """Ends the loader; iteration then stops."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __enter__(self) -> TrainingStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count_bad(self, rows: frozenset[int]) -> None:
        self._bad_rows |= rows
        self.bad_images = len(self._bad_rows)
        if self.bad_images > self._max_bad:
            self.close()
            raise UserError(
                f"{self._uri} has more than {self._max_bad} images that cannot be decoded (rows "
                f"{', '.join(map(str, sorted(self._bad_rows)[:5]))} …): correct the set or raise "
                "data.max_bad_images"
            )

    def _check_cache(self, cache_bytes: int) -> None:
        """Checks that two shuffle windows fit: ranks and loaders do not pass to the next one all at once."""
        sizes = [RowFile.most_bytes(shard) for shard in self.manifest.shards]
        needed = min(sum(sizes), 2 * max(WINDOW_BYTES, max(sizes)))
        if cache_bytes < needed:
            raise UserError(
                f"data.cache_bytes is {cache_bytes}, and {self._uri} needs a cache of at least {needed} bytes"
            )
