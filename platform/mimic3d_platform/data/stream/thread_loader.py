"""Reading batches in a thread of the training's process."""

from __future__ import annotations

import contextlib
import queue
import threading

from mimic3d_platform.data.stream.batches import BatchPlan, BatchReader, DecodedBatch
from mimic3d_platform.data.stream.prefetcher import ShardPrefetcher

_BATCHES_AHEAD = 3

_BatchQueue = queue.Queue[DecodedBatch | BaseException]


class ThreadLoader:
    """Gives a plan's batches in order, from batch 0 on; a thread reads a few of them ahead."""

    restarts = 0

    def __init__(self, plan: BatchPlan, prefetcher: ShardPrefetcher) -> None:
        self._batches: _BatchQueue = queue.Queue(_BATCHES_AHEAD)
        self._stop = threading.Event()
        # The thread holds no reference to the loader, so that an unused one can end it.
        arguments = (plan, prefetcher, self._batches, self._stop)
        self._thread = threading.Thread(
            target=_read_batches, args=arguments, name="training stream", daemon=True
        )
        self._thread.start()

    def next_batch(self) -> DecodedBatch:
        """The next batch.

        Raises:
            UserError: as `BatchReader.read`.
        """
        batch = self._batches.get()
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def pids(self) -> list[int]:
        """The process ids of the loader's processes: it has none."""
        return []

    def close(self) -> None:
        """Ends the thread, and waits for that: a request to storage is completed first."""
        self._stop.set()
        self._thread.join()

    def __del__(self) -> None:
        self._stop.set()


def _read_batches(
    plan: BatchPlan, prefetcher: ShardPrefetcher, batches: _BatchQueue, stop: threading.Event
) -> None:
    reader = None
    number = 0
    while not stop.is_set():
        item: DecodedBatch | BaseException
        try:
            reader = reader or BatchReader(plan)
            prefetcher.prefetch(number, number)
            item = reader.read(number)
        except BaseException as error:
            item = error
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                batches.put(item, timeout=0.2)
                break
        if isinstance(item, BaseException):
            break
        number += 1
    prefetcher.close()
    if reader is not None:
        reader.close()
