"""Fetching the shards of the next batches into the cache before they are read."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading

from mimic3d.training.order import EpochOrder, Window
from mimic3d_platform.data.stream.batches import BatchPlan
from mimic3d_platform.data.stream.shard_cache import ShardCache
from mimic3d_platform.errors import UserError

_THREADS = 2  # Each holds a shard in memory.

# Indices of the shards to fetch, in the order in which they are needed; None ends the thread.
_ShardQueue = queue.SimpleQueue[list[int] | None]


class ShardPrefetcher:
    """Threads that fetch the shards of the next batches, and of the shuffle window after those.

    Each thread has a queue, whose latest list replaces the earlier ones.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._order = EpochOrder(plan.manifest, plan.seed)
        self._windows: list[Window] = []
        self._queues = [_ShardQueue() for _ in range(_THREADS)]
        cache = ShardCache(plan.cache_folder, plan.cache_bytes, plan.patience_s)
        for shards in self._queues:
            arguments = (plan, cache, shards)
            threading.Thread(target=_fetch_shards, args=arguments, name="prefetch", daemon=True).start()

    def prefetch(self, first: int, last: int) -> None:
        """Starts to fetch what batches `first` to `last` need; returns at once."""
        end = self._plan.position(last) + self._plan.batch_size - 1
        windows = self._order.windows_from(self._plan.position(first), end)
        if windows != self._windows:
            self._windows = windows
            for shards in self._queues:
                shards.put([shard for window in windows for shard in window.shards])

    def close(self) -> None:
        """Makes the threads end after the shards that they are fetching; does not wait for that."""
        for shards in self._queues:
            shards.put(None)

    def __del__(self) -> None:
        self.close()


def _fetch_shards(plan: BatchPlan, cache: ShardCache, queue: _ShardQueue) -> None:
    """The loop of one thread. It holds no reference to the prefetcher, so that an unused one can end it."""
    while (shards := queue.get()) is not None:
        # First the shards that no other thread or process is fetching, so that several are fetched in
        # parallel.
        for wait, shard in itertools.product((False, True), shards):
            if not queue.empty():
                break
            # The reader that needs the shard meets the same error, and raises it.
            with contextlib.suppress(UserError):
                cache.ensure(plan.uri, plan.manifest.shards[shard], wait=wait)
