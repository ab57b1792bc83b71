"""The training stream: batches of a data set, for any rank of any world, from any image on, for ever."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from mimic3d.training.order import WINDOW_BYTES
from mimic3d_platform.data.format.dataset import open_dataset, require
from mimic3d_platform.data.stream.batches import Course, ShardsAhead
from mimic3d_platform.data.stream.cache_files import RowFile
from mimic3d_platform.data.stream.process_loader import ProcessLoader, ThreadLoader
from mimic3d_platform.data.stream.shard_cache import CACHE_BYTES, cache_folder
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
    comes once an epoch; rank r takes the r-th of `world_size` equal slices. So a stream started at any `nimg`
    goes on with exactly what would have come, and the world's size changes nothing but who gets what. Its
    state is `nimg` and the set's fingerprint.

    Args:
        cache_bytes: the bound of this machine's cache, which all its processes share (`data.cache`).
        loaders: processes that fetch, verify and decode; 0 leaves that to a thread.
        max_bad_images: so many of this rank's images may be undecodable; the next good one of the same shard
            takes the place of each.
        patience_s: how long transient errors of storage are retried (`data.patience_s`); the settings' if not
            given.
    Attributes:
        nimg: images that all ranks have consumed, counting those before the start.
        wait_seconds: how long `next` has waited for data in all.
        bad_images: how many different images were replaced.
    Raises:
        UserError: as `open_dataset`; the arguments do not fit one another or the set. Iterating raises it for
            what is wrong with a shard or an image, and for storage that is out of reach for too long.
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
        require(self.manifest, where=uri)
        self.nimg, self.wait_seconds, self.bad_images = nimg, 0.0, 0
        self._bad_rows: frozenset[int] = frozenset()
        self._uri, self._global_batch, self._max_bad = uri, global_batch, max_bad_images
        self._check_cache(cache_bytes)
        share = global_batch // world_size
        course = Course(
            uri=uri,
            manifest=self.manifest,
            seed=seed,
            cache_folder=cache_folder(),
            cache_bytes=cache_bytes,
            skip_bad=max_bad_images > 0,
            patience_s=patience_s,
            start=nimg + rank * share,
            share=share,
            step=global_batch,
        )
        self._loader: ThreadLoader | ProcessLoader | None
        ahead = ShardsAhead(course)
        ahead.reach(0, 0)
        self._loader = ProcessLoader(course, ahead, loaders) if loaders else ThreadLoader(course, ahead)

    @property
    def loader_restarts(self) -> int:
        """How many loader processes ended before their time and were replaced."""
        return self._loader.restarts if self._loader else 0

    @property
    def loader_pids(self) -> list[int]:
        """The process ids of the loaders."""
        return self._loader.pids() if isinstance(self._loader, ProcessLoader) else []

    def __iter__(self) -> TrainingStream:
        return self

    def __next__(self) -> Batch:
        if self._loader is None:
            raise StopIteration
        started = time.perf_counter()
        try:
            made = self._loader.take()
        except BaseException:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - started
        self._count_bad(made.bad_rows)
        self.nimg += self._global_batch
        return Batch(torch.from_numpy(made.images), torch.from_numpy(made.cameras))

    def close(self) -> None:
        """Ends the loaders. The stream then has no more batches."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __enter__(self) -> TrainingStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count_bad(self, rows: frozenset[int]) -> None:
        self._bad_rows |= rows
        self.bad_images = len(self._bad_rows)
        if self.bad_images > self._max_bad:
            self.close()
            raise UserError(
                f"{self._uri} has more than {self._max_bad} images that cannot be decoded (rows "
                f"{', '.join(map(str, sorted(self._bad_rows)[:5]))} …): mend the set or raise "
                "data.max_bad_images"
            )

    def _check_cache(self, cache_bytes: int) -> None:
        """Two windows must fit: ranks and loaders pass from one to the next at moments of their own."""
        sizes = [RowFile.most_bytes(shard) for shard in self.manifest.shards]
        needed = min(sum(sizes), 2 * max(WINDOW_BYTES, max(sizes)))
        if cache_bytes < needed:
            raise UserError(
                f"data.cache_bytes is {cache_bytes}, and {self._uri} needs a cache of at least {needed} bytes"
            )
