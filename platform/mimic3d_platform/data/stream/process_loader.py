"""Reading batches in processes of their own, so that decoding takes no time of the training step.

Loader process i of n reads batches i, i + n, i + 2n, … into slots of shared memory, a few batches ahead. A
process that ends unexpectedly is replaced, and the new one gets its unanswered requests again: since a batch
depends on its number alone, none is lost and none is repeated. Until the processes have started, the
training's process reads its batches itself.

Why not a torch DataLoader: it is slower, and gives less. `benchmarks/torch_loaders.py` reads the same batches
with one in three ways. On two cores and images of 64² from the local cache, in images per second: these
processes 39,000, a DataLoader whose workers pickle their batches 5,500 (0.14), one whose forked workers write
into the slots of shared memory below 26,000 (0.66); with workers that are spawned, which threads of Ray and
of storage clients require, 0.1, and 5 to 19 s to the first batch instead of 0.4 to 4. A DataLoader neither
replaces a worker that is killed nor gives batches before its workers have started, and the fastest way needs
these slots all the same. Measured by `python -m benchmarks.data --only mimic3d "torch DataLoader, spawn"
"torch DataLoader, fork" "torch DataLoader, fork and slots"`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import subprocess
import sys
from collections import deque
from collections.abc import Callable

from mimic3d_platform.data.stream.batches import BatchPlan, BatchReader, DecodedBatch
from mimic3d_platform.data.stream.loader_protocol import Answer, BatchSlots, LoaderFailed, ReadBatch, Ready
from mimic3d_platform.data.stream.prefetcher import ShardPrefetcher
from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

_BATCHES_AHEAD = 3  # of each process
_MOST_DEATHS = 3  # of processes, without a batch in between


class ProcessLoader:
    """Gives a plan's batches in order, from batch 0 on, which `processes` loader processes read.

    Attributes:
        restarts: number of processes that ended unexpectedly and were replaced.
    """

    def __init__(self, plan: BatchPlan, prefetcher: ShardPrefetcher, processes: int) -> None:
        self.restarts = 0
        self._plan, self._prefetcher, self._next = plan, prefetcher, 0
        self._reader: BatchReader | None = None
        self._slots = BatchSlots(plan, processes * _BATCHES_AHEAD)
        self._processes = [
            _LoaderProcess(plan, self._slots.descriptor, index, processes) for index in range(processes)
        ]

    def next_batch(self) -> DecodedBatch:
        """The next batch, copied from the shared memory.

        Raises:
            UserError: as `BatchReader.read`; or the processes end again and again.
        """
        process = self._processes[self._next % len(self._processes)]
        self._prefetcher.prefetch(self._next, self._next + _BATCHES_AHEAD * len(self._processes))
        if not process.has_begun and not process.has_output():
            return self._read_here()
        if not process.has_begun:
            process.begin(self._next)
            if all(each.has_begun for each in self._processes):
                self._close_reader()
        answer = self._answer_of(process)
        if isinstance(answer, LoaderFailed):
            raise answer.error
        images, cameras = self._slots.arrays(process.oldest_slot)
        batch = DecodedBatch(images.copy(), cameras.copy(), answer.bad_rows)
        process.free_oldest_slot()
        self._next += 1
        return batch

    def pids(self) -> list[int]:
        """The ids of the processes."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """Ends the processes."""
        self._close_reader()
        self._prefetcher.close()
        for process in self._processes:
            process.end()
        self._processes = []
        self._slots.close()

    def _answer_of(self, process: _LoaderProcess) -> Answer:
        """The answer to the oldest request of a process, which is replaced if it ends before."""
        deaths = 0
        while (answer := process.answer()) is None:
            status, deaths = process.end(), deaths + 1
            self.restarts += 1
            if deaths > _MOST_DEATHS:
                raise UserError(
                    f"a loader process ended {deaths} times before its batch ({_described(status)}): is "
                    "there too little memory? Lower data.loader_workers; 0 loads in the training's process"
                )
            log.warning("a loader process ended (%s) and is replaced", _described(status))
            process.start()
        return answer

    def _read_here(self) -> DecodedBatch:
        """The next batch, read by this thread, which would otherwise wait for a process to start."""
        self._reader = self._reader or BatchReader(self._plan)
        batch = self._reader.read(self._next)
        self._next += 1
        return batch

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __del__(self, at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the interpreter exits, this module's names are gone; the processes end with this one anyway.
        if not at_exit():
            self.close()


class _LoaderProcess:
    """One loader process and its unanswered requests: every `stride`-th batch from `begin` on."""

    def __init__(self, plan: BatchPlan, descriptor: int, index: int, stride: int) -> None:
        self._plan, self._descriptor = plan, descriptor
        self._number, self._stride, self.has_begun = 0, stride, False
        self._free_slots = deque(range(index * _BATCHES_AHEAD, (index + 1) * _BATCHES_AHEAD))
        self._requests: deque[ReadBatch] = deque()
        self.start()

    def start(self) -> None:
        """Starts a process and sends the unanswered requests."""
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # where this process found its modules
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mimic3d_platform.data.stream.loader_process", str(self._descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._descriptor,),
            env=os.environ | environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self.pid = self._process.pid
        self._send(self._plan)
        for request in self._requests:
            self._send(request)

    def has_output(self) -> bool:
        """Whether the process has started, or ended; does not wait."""
        return bool(select.select([self._output], [], [], 0)[0])

    def begin(self, number: int) -> None:
        """Requests batch `number` and those that follow, one for each slot."""
        self._number, self.has_begun = number, True
        while self._free_slots:
            self._request_next()

    def answer(self) -> Answer | None:
        """The answer to the oldest request; waits for it. None if the process has ended."""
        try:
            while True:
                message: Ready | Answer = pickle.load(self._output)
                if not isinstance(message, Ready):
                    return message
        except (EOFError, OSError, pickle.UnpicklingError):
            return None

    @property
    def oldest_slot(self) -> int:
        """The slot of the oldest request."""
        return self._requests[0].slot

    def free_oldest_slot(self) -> None:
        """Removes the oldest request, whose batch has been copied, and requests another batch."""
        self._free_slots.append(self._requests.popleft().slot)
        self._request_next()

    def end(self) -> int:
        """Ends the process if it runs; its exit status."""
        with contextlib.suppress(OSError):
            self._input.close()
        self._process.terminate()
        try:
            status = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._output.close()
        return status

    def _request_next(self) -> None:
        request = ReadBatch(self._number, self._free_slots.popleft())
        self._requests.append(request)
        self._number += self._stride
        self._send(request)

    def _send(self, message: BatchPlan | ReadBatch) -> None:
        # That the process has ended is noticed when its answer is read.
        with contextlib.suppress(OSError):
            pickle.dump(message, self._input)
            self._input.flush()


def _described(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
