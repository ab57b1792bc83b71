"""The program of a loader process: reads the batches that the training's process asks for.

It is run as `python -m mimic3d_platform.data.stream.loader_process DESCRIPTOR`, with the descriptor of the
shared memory (`loader_protocol`). It must start quickly: it imports neither PyTorch nor, unless it has to
fetch a shard, PyArrow and pydantic. It ends when its standard input is closed, that is, when the training's
process ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import sys
import threading
from collections.abc import Iterator

from mimic3d_platform.data.stream.batches import BatchPlan, BatchReader
from mimic3d_platform.data.stream.loader_protocol import (
    Answer,
    BatchRead,
    BatchSlots,
    LoaderFailed,
    ReadBatch,
    Ready,
)
from mimic3d_platform.errors import UserError

# The prefetching threads of the training's process fetch shards. For this long a loader process waits for
# them: to fetch a shard itself, it would first have to import PyArrow.
_FETCH_DELAY_S = 1.0


def serve(descriptor: int) -> None:
    """Reads batches until the training's process closes the pipe."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Whatever libraries print goes to the standard error, not between the messages.

    def answer(message: Ready | Answer) -> None:
        pickle.dump(message, output)
        output.flush()

    answer(Ready())
    messages = _received()
    plan = next(messages)
    assert isinstance(plan, BatchPlan)
    slots = BatchSlots(plan, descriptor=descriptor)
    reader = None
    for request in messages:
        assert isinstance(request, ReadBatch)
        try:
            reader = reader or BatchReader(plan, _FETCH_DELAY_S)
            answer(BatchRead(reader.read(request.number, *slots.arrays(request.slot)).bad_rows))
        except UserError as error:
            answer(LoaderFailed(error))
        except Exception as error:
            answer(LoaderFailed(RuntimeError(f"a loader process failed: {error!r}")))
            raise


def _received() -> Iterator[BatchPlan | ReadBatch]:
    """The messages on the standard input; when that is closed, the process ends at once."""
    messages: queue.SimpleQueue[BatchPlan | ReadBatch] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                messages.put(pickle.load(sys.stdin.buffer))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield messages.get()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(int(sys.argv[1]))
