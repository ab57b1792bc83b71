"""The protocol of loader processes: messages over pipes, batches in shared memory.

The training's process writes a `BatchPlan`, then `ReadBatch`es; the loader process answers `Ready` once, then
`BatchRead` or `LoaderFailed` to each request, in order. All are pickled. A slot of the shared memory holds
one batch.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np

from mimic3d_platform.data.format.manifest import CAMERA_SIZE
from mimic3d_platform.data.stream.batches import BatchPlan


@dataclass(frozen=True)
class ReadBatch:
    """Asks a loader process to read batch `number` into `slot`."""

    number: int
    slot: int


@dataclass(frozen=True)
class Ready:
    """The loader process has started."""


@dataclass(frozen=True)
class BatchRead:
    """A batch is in its slot.

    Attributes:
        bad_rows: as `DecodedBatch.bad_rows`, of this process.
    """

    bad_rows: frozenset[int]


@dataclass(frozen=True)
class LoaderFailed:
    """A batch cannot be read, for the reason that `error` gives."""

    error: Exception


Answer = BatchRead | LoaderFailed


class BatchSlots:
    """Shared memory with room for a number of batches of a plan.

    Args:
        descriptor: of the memory, as another process made it; new memory when None.
        count: number of slots of new memory.
    Attributes:
        descriptor: to be inherited by loader processes.
    """

    def __init__(self, plan: BatchPlan, count: int = 0, descriptor: int | None = None) -> None:
        side = plan.manifest.resolution
        self._shape = (plan.batch_size, 3, side, side)
        self._image_bytes = plan.batch_size * 3 * side * side
        camera_bytes = 4 * CAMERA_SIZE * plan.batch_size
        # Whole pages; 3 bytes at most align the cameras.
        self._slot_bytes = -(-(self._image_bytes + 3 + camera_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        if descriptor is None:
            descriptor = _new_memory(count * self._slot_bytes)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, 0)

    def arrays(self, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, 3, R, R) uint8 and cameras (n, 25) float32 of a slot, in place."""
        start = slot * self._slot_bytes
        images = np.frombuffer(self._memory, np.uint8, self._image_bytes, start)
        cameras_start = start + self._image_bytes + -self._image_bytes % 4
        cameras = np.frombuffer(self._memory, np.float32, self._shape[0] * CAMERA_SIZE, cameras_start)
        return images.reshape(self._shape), cameras.reshape(-1, CAMERA_SIZE)

    def close(self) -> None:
        """Closes the descriptor; the memory is freed when no process and no array uses it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _new_memory(size: int) -> int:
    """The descriptor of memory that has no name, so that no file of it can remain."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mimic3d-batches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
