"""The training stream with a torch DataLoader in place of its loader processes, in three variants.

All give the stream's batches in its order, from its cache, with its prefetching threads. They show what a
DataLoader costs; they do not replace workers that are killed, which a DataLoader reports as an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.manifest import CAMERA_SIZE
from mimic3d_platform.data.stream.batches import BatchPlan, BatchReader
from mimic3d_platform.data.stream.prefetcher import ShardPrefetcher
from mimic3d_platform.data.stream.shard_cache import CACHE_BYTES, cache_folder

_BATCHES_AHEAD = 3  # of each worker, as of each loader process
_FETCH_DELAY_S = 1.0

Batch = tuple[Tensor, Tensor]


class StreamBatches(IterableDataset[Batch]):
    """Worker i of n yields batches i, i + n, i + 2n, …; the DataLoader collects them in turn, in order."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        assert worker is not None
        reader = BatchReader(self._plan, _FETCH_DELAY_S)
        number = worker.id
        while True:
            batch = reader.read(number)
            yield torch.from_numpy(batch.images), torch.from_numpy(batch.cameras)
            number += worker.num_workers


class SlotBatches(Dataset[int]):
    """Batch k is read into slot k modulo the number of slots of tensors in shared memory.

    `images[slot]` and `cameras[slot]` hold it; what the DataLoader transfers is the slot's number.
    """

    def __init__(self, plan: BatchPlan, slots: int) -> None:
        side = plan.manifest.resolution
        self.images = torch.zeros(slots, plan.batch_size, 3, side, side, dtype=torch.uint8).share_memory_()
        self.cameras = torch.zeros(slots, plan.batch_size, CAMERA_SIZE).share_memory_()
        self._plan = plan
        self._reader: BatchReader | None = None

    def __getitem__(self, number: int) -> int:
        self._reader = self._reader or BatchReader(self._plan, _FETCH_DELAY_S)
        slot = number % len(self.images)
        self._reader.read(number, self.images[slot].numpy(), self.cameras[slot].numpy())
        return slot


class Counting(Sampler[int]):
    """0, 1, 2, … without end."""

    def __iter__(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1


def _plan(uri: str, batch: int) -> BatchPlan:
    return BatchPlan(
        uri=uri,
        manifest=open_dataset(uri),
        seed=0,
        cache_folder=Path(cache_folder()),
        cache_bytes=CACHE_BYTES,
        skip_bad=False,
        patience_s=None,
        first_position=0,
        batch_size=batch,
        stride=batch,
    )


def _prefetched(loaded: Iterator[Batch], plan: BatchPlan, workers: int) -> Iterator[Batch]:
    """The loaded batches, with the stream's prefetching; the threads start after the workers were forked."""
    prefetcher = ShardPrefetcher(plan)
    number = 0
    while True:
        prefetcher.prefetch(number, number + _BATCHES_AHEAD * workers)
        yield next(loaded)
        number += 1


def transferred(start_method: str) -> Callable[[str, int, int], Iterator[Batch]]:
    """Batches that the DataLoader transfers as tensors, from workers that start by `start_method`."""

    def batches(uri: str, batch: int, workers: int) -> Iterator[Batch]:
        plan = _plan(uri, batch)
        loader = DataLoader(
            StreamBatches(plan),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_BATCHES_AHEAD,
            multiprocessing_context=start_method,
        )
        return _prefetched(iter(loader), plan, workers)

    return batches


def in_slots(uri: str, batch: int, workers: int) -> Iterator[Batch]:
    """Batches in slots of shared memory that are allocated once, from forked workers."""
    plan = _plan(uri, batch)
    # One more than are requested at a time: the batch that is being copied.
    data = SlotBatches(plan, _BATCHES_AHEAD * workers + 1)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=Counting(),
        num_workers=workers,
        prefetch_factor=_BATCHES_AHEAD,
        multiprocessing_context="fork",
    )
    slots = iter(loader)
    copies = ((data.images[slot].clone(), data.cameras[slot].clone()) for slot in slots)
    return _prefetched(copies, plan, workers)


VARIANTS: dict[str, Callable[[str, int, int], Iterator[Batch]]] = {
    "spawn": transferred("spawn"),
    "fork": transferred("fork"),
    "fork and slots": in_slots,
}
