"""Signals that a worker, its node or the whole run is about to end, so that a checkpoint is stored first.

A signal is SIGTERM to a worker, the drain of its node as Ray announces it, or the driver's request to stop.
The ranks agree on it between two steps, so that all of them stop at the same image.
"""

from __future__ import annotations

import contextlib
import enum
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import cast

import torch
import torch.distributed as dist

from mimic3d_platform.cluster.ray_internals import get_train_context

POLL_S = 1.0


class StopSignal(enum.IntEnum):
    """The reason to stop that a rank has seen; of several, the greatest counts."""

    NONE = 0
    NODE_DRAINING = 1
    """A node is about to be taken away: store a checkpoint, and train on until Ray ends the workers."""
    WORKER_TERMINATED = 2
    """A worker received SIGTERM: store a checkpoint and fail, so that Ray starts new workers."""
    STOP_REQUESTED = 3
    """The driver asks the workers to stop: store a checkpoint and return."""


# Set by the signal handler of this worker process.
_sigterm_received = threading.Event()


def catch_sigterm() -> None:
    """Sets the handler that makes the first SIGTERM a stop signal; a second one ends the process as before.

    To be called in the worker's main thread, while the training runs in another.
    """
    former = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        if _sigterm_received.is_set() and callable(former):
            former(number, frame)
        _sigterm_received.set()

    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, handle)


class StopSignals:
    """The stop signals of all ranks, asked for by every rank before every step.

    Args:
        stop_requested: whether the driver asks to stop; rank 0 polls it in a thread.

    Attributes:
        group: a process group on the CPU for messages between ranks; None for a single worker.
    """

    def __init__(self, stop_requested: Callable[[], bool], rank: int, world_size: int) -> None:
        self._stop_requested = False
        self._drain_reported = False
        self._closed = threading.Event()
        # On the CPU even where gradients travel between GPUs, so that no step waits for a GPU.
        self.group: dist.ProcessGroup | None = None
        if world_size > 1:
            self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        if rank == 0:
            poll = threading.Thread(
                target=self._poll, args=(stop_requested,), name="stop signals", daemon=True
            )
            poll.start()

    def agreed(self) -> StopSignal:
        """The greatest signal that any rank knows, the same on all ranks; a draining node only once.

        A collective operation: each rank has to call it equally often.
        """
        known = self._known()
        if self.group is not None:
            greatest = torch.tensor([int(known)])
            dist.all_reduce(greatest, op=dist.ReduceOp.MAX, group=self.group)
            known = StopSignal(int(greatest))
        if known == StopSignal.NODE_DRAINING:
            if self._drain_reported:
                return StopSignal.NONE
            self._drain_reported = True
        return known

    def close(self) -> None:
        """Ends the polling."""
        self._closed.set()

    def _known(self) -> StopSignal:
        if self._stop_requested:
            return StopSignal.STOP_REQUESTED
        if _sigterm_received.is_set():
            return StopSignal.WORKER_TERMINATED
        draining = get_train_context().preemption_context.preemption_info is not None
        return StopSignal.NODE_DRAINING if draining else StopSignal.NONE

    def _poll(self, stop_requested: Callable[[], bool]) -> None:
        while not self._closed.wait(POLL_S):
            self._stop_requested = self._stop_requested or stop_requested()
