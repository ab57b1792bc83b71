"""Notice that a worker, its node or the whole run is about to end, so that a checkpoint is made first.

Notice comes as SIGTERM to a worker, as a drain of its node that Ray announces, or from the driver, which was
told to stop. The ranks agree on it between two steps, so that all of them stop at the same image.
"""

from __future__ import annotations

import contextlib
import enum
import signal
import threading
from typing import Any

POLL_S = 1.0


class Notice(enum.IntEnum):
    """What was announced; the greater one wins."""

    NONE = 0
    NODE_DRAINS = 1
    """Ray ends the workers when it must: save, and go on until then."""
    WORKER_TERMINATES = 2
    """A worker got SIGTERM: save, and let Ray start the workers anew."""
    STOP = 3
    """The driver was told to stop: save, and end."""


# Set by the signal's handler, in whichever worker process this is.
_terminated = threading.Event()


def listen() -> None:
    """Makes SIGTERM a notice; for the worker's main thread, while the training runs in another."""
    former = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: Any) -> None:
        if _terminated.is_set() and callable(former):
            former(number, frame)
        _terminated.set()

    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, handle)


class NoticeWatch:
    """Asked by every rank before every step.

    Args:
        board: of the run; rank 0 asks it, in a thread, whether the driver wants to stop.

    Attributes:
        group: a process group of the CPU for what ranks tell each other; None for a single worker.
    """

    def __init__(self, board: Any, rank: int, world_size: int) -> None:
        self._world_size = world_size
        self._stop = False
        self._drain_told = False
        self._closed = threading.Event()
        self.group: Any = None
        if world_size > 1:
            import torch.distributed as dist

            # Of the CPU even where gradients travel between GPUs, so that no step waits for a GPU.
            self.group = dist.new_group(backend="gloo")
        if rank == 0:
            threading.Thread(target=self._follow, args=(board,), name="notice", daemon=True).start()

    def agreed(self) -> Notice:
        """What any rank knows; the same answer for all ranks. Each rank has to ask equally often."""
        mine = self._mine()
        if self.group is not None:
            import torch
            import torch.distributed as dist

            told = torch.tensor([int(mine)])
            dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.group)
            mine = Notice(int(told))
        if mine == Notice.NODE_DRAINS:
            if self._drain_told:
                return Notice.NONE
            self._drain_told = True
        return mine

    def close(self) -> None:
        self._closed.set()

    def _mine(self) -> Notice:
        if self._stop:
            return Notice.STOP
        if _terminated.is_set():
            return Notice.WORKER_TERMINATES
        from mimic3d_platform.cluster.ray_internals import get_train_context

        draining = get_train_context().preemption_context.preemption_info is not None
        return Notice.NODE_DRAINS if draining else Notice.NONE

    def _follow(self, board: Any) -> None:
        import ray

        while not self._closed.wait(POLL_S):
            try:
                self._stop = self._stop or ray.get(board.stopping.remote(), timeout=10)
            except ray.exceptions.RayActorError:
                self._stop = True  # Nobody waits for this run any more.
            except ray.exceptions.RayError:
                continue
