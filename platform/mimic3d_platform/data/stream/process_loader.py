"""Batches made off the training's back: in processes of their own, or in a thread.

A loader process runs this module as a program. Over its standard input it is told which batches to make, and
into which slots of a piece of shared memory; over its standard output it says when one is there. It imports
no PyTorch and needs no guard in the main program, and when its parent is gone, so is it. One that is killed
is replaced: what it had been told is told to the next, and since a batch is a function of its position,
nothing is lost and nothing comes twice.

Shards are fetched ahead by threads of the training's process (`ShardsAhead`); a loader that finds one missing
for long fetches it itself.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import pickle
import queue
import select
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mimic3d_platform.data.format.manifest import CAMERA_SIZE
from mimic3d_platform.data.stream.batches import BatchMaker, Course, Made, ShardsAhead
from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

_DEPTH = 3  # Batches that a process or the thread makes ahead.
_READY = {"ready": True}
_DEATHS = 3  # Of processes without a batch in between, until it is an error.
# For so long a loader waits for the threads when a shard is not there; to fetch at all it has to import much.
_LEAVE_S = 1.0


class ThreadLoader:
    """A thread of this process makes the batches."""

    restarts = 0

    def __init__(self, course: Course, ahead: ShardsAhead) -> None:
        self._batches: queue.Queue[Made | BaseException] = queue.Queue(_DEPTH)
        self._stop = threading.Event()
        # The thread holds no reference to the loader, so that a forgotten one can end it.
        work = (course, ahead, self._batches, self._stop)
        self._thread = threading.Thread(target=_make_all, args=work, name="training stream", daemon=True)
        self._thread.start()

    def take(self) -> Made:
        """The next batch; raises what went wrong with it."""
        made = self._batches.get()
        if isinstance(made, BaseException):
            raise made
        return made

    def close(self) -> None:
        """Ends the thread, at the latest when a request to storage that is under way is answered."""
        self._stop.set()
        self._thread.join()

    def __del__(self) -> None:
        self._stop.set()


def _make_all(
    course: Course, ahead: ShardsAhead, batches: queue.Queue[Made | BaseException], stop: threading.Event
) -> None:
    maker = None
    number = 0
    while not stop.is_set():
        item: Made | BaseException
        try:
            maker = maker or BatchMaker(course)
            ahead.reach(number, number)
            item = maker.make(number)
        except BaseException as error:
            item = error
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                batches.put(item, timeout=0.2)
                break
        if isinstance(item, BaseException):
            break
        number += 1
    ahead.close()
    if maker is not None:
        maker.close()


class ProcessLoader:
    """`processes` programs make the batches, each every so-manieth.

    Attributes:
        restarts: how many processes were replaced.
    """

    def __init__(self, course: Course, ahead: ShardsAhead, processes: int) -> None:
        self.restarts = 0
        self._course, self._ahead, self._next = course, ahead, 0
        self._maker: BatchMaker | None = None
        self._memory, self._descriptor = _shared_memory(processes * _DEPTH * course.slot_bytes)
        self._workers = [_Worker(course, self._descriptor, index, processes) for index in range(processes)]

    def take(self) -> Made:
        """The next batch, copied out of the shared memory; raises what went wrong with it."""
        worker = self._workers[self._next % len(self._workers)]
        self._ahead.reach(self._next, self._next + _DEPTH * len(self._workers))
        if not worker.has_begun and not worker.is_ready():
            return self._make_here()
        if not worker.has_begun:
            worker.begin(self._next)
            if all(each.has_begun for each in self._workers):
                self._close_maker()
        deaths = 0
        while (answer := worker.answer()) is None:
            status, deaths = worker.end(), deaths + 1
            self.restarts += 1
            if deaths > _DEATHS:
                raise UserError(
                    f"a loader process ended {deaths} times before its batch ({_status(status)}): is there "
                    "too little memory? Lower data.loader_workers; 0 loads in the training's own process"
                )
            log.warning("a loader process ended (%s) and is replaced", _status(status))
            worker.start()
        if "error" in answer:
            raise answer["error"]
        images, cameras = _slot(self._course, self._memory, answer["slot"])
        made = Made(images.copy(), cameras.copy(), answer["bad_rows"])
        worker.release()
        self._next += 1
        return made

    def _make_here(self) -> Made:
        """The next batch, made by this thread, which would else wait for a process to start."""
        self._maker = self._maker or BatchMaker(self._course)
        made = self._maker.make(self._next)
        self._next += 1
        return made

    def pids(self) -> list[int]:
        """The processes' ids."""
        return [worker.pid for worker in self._workers]

    def close(self) -> None:
        """Ends the processes."""
        self._close_maker()
        self._ahead.close()
        for worker in self._workers:
            worker.end()
        self._workers = []
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _close_maker(self) -> None:
        if self._maker is not None:
            self._maker.close()
            self._maker = None

    def __del__(self, at_exit: Callable[[], bool] = sys.is_finalizing) -> None:
        if not at_exit():  # This module's names are gone then; the processes hear that their parent is.
            self.close()


class _Worker:
    """One loader process and what it has been told: every so-manieth batch, from `begin` on."""

    def __init__(self, course: Course, descriptor: int, index: int, processes: int) -> None:
        self._course, self._descriptor = course, descriptor
        self._number, self._stride, self.has_begun = 0, processes, False
        self._slots = deque(range(index * _DEPTH, (index + 1) * _DEPTH))
        self._told: deque[tuple[int, int]] = deque()
        self.start()

    def start(self) -> None:
        """Starts a process and tells it what is outstanding."""
        # Its modules are found where this process found them.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mimic3d_platform.data.stream.process_loader", str(self._descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._descriptor,),
            env=environment | {"OMP_NUM_THREADS": "1"},
        )
        self.pid = self._process.pid
        self._tell(self._course)
        for told in self._told:
            self._tell(told)

    def is_ready(self) -> bool:
        """Whether the process has started, or has ended at that; not waited for."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def begin(self, number: int) -> None:
        """Asks for batch `number` and those that follow."""
        self._number, self.has_begun = number, True
        while self._slots:
            self._ask()

    def answer(self) -> dict[str, Any] | None:
        """What the process says of the oldest batch; None if it is gone."""
        try:
            while (what := pickle.load(self._process.stdout)) == _READY:
                pass
            return what
        except (EOFError, OSError, pickle.UnpicklingError):
            return None

    def release(self) -> None:
        """The oldest batch has been copied: its slot may be filled anew."""
        self._slots.append(self._told.popleft()[1])
        self._ask()

    def end(self) -> int:
        """Ends the process, if it has not ended; its exit status."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.terminate()
        try:
            status = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process.stdout.close()
        return status

    def _ask(self) -> None:
        self._told.append((self._number, self._slots.popleft()))
        self._number += self._stride
        self._tell(self._told[-1])

    def _tell(self, what: Any) -> None:
        # That it is gone is noticed when its answer is wanted.
        with contextlib.suppress(OSError):
            pickle.dump(what, self._process.stdin)
            self._process.stdin.flush()


def _status(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _shared_memory(size: int) -> tuple[mmap.mmap, int]:
    """Memory, and the descriptor by which another process sees it; it has no name to be left behind."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mimic3d-batches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return mmap.mmap(descriptor, size), descriptor


def _slot(course: Course, memory: mmap.mmap, slot: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and cameras of a slot, in place."""
    start, size = slot * course.slot_bytes, int(np.prod(course.image_shape))
    images = np.frombuffer(memory, np.uint8, size, start)
    cameras = np.frombuffer(memory, np.float32, course.share * CAMERA_SIZE, start + size + -size % 4)
    return images.reshape(course.image_shape), cameras.reshape(-1, CAMERA_SIZE)


def _serve(descriptor: int) -> None:
    """A loader process: makes what it is told, until its parent hangs up."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints must not get between the answers.

    def answer(what: dict[str, Any]) -> None:
        pickle.dump(what, answers)
        answers.flush()

    answer(_READY)
    orders = _orders()
    course: Course = next(orders)
    memory = mmap.mmap(descriptor, 0)
    maker = None
    for number, slot in orders:
        try:
            maker = maker or BatchMaker(course, _LEAVE_S)
            made = maker.make(number, *_slot(course, memory, slot))
            answer({"slot": slot, "bad_rows": made.bad_rows})
        except UserError as error:
            answer({"error": error})
        except Exception as error:
            answer({"error": RuntimeError(f"a loader process failed: {error!r}")})
            raise


def _orders() -> Iterator[Any]:
    """What the parent says; when it has hung up, the process ends at once, whatever it is doing."""
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                said.put(pickle.load(sys.stdin.buffer))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield said.get()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve(int(sys.argv[1]))
