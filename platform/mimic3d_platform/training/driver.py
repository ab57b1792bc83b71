"""The driver of a run while its workers train: Ctrl-C and SIGTERM, progress and notes."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mimic3d_platform.errors import ClusterGoneError
from mimic3d_platform.training.progress import Report

Result = TypeVar("Result")

POLL_S = 1.0
# After a first signal the workers have so long to store a checkpoint; a second signal ends at once.
STOP_PATIENCE_S = 20.0
HEAD_POLL_S = 3.0
HEAD_PATIENCE_S = 20.0


def run_interruptible(work: Callable[[], Result], board: Any, say: Callable[[str], None]) -> Result:
    """The result of `work`; Ctrl-C and SIGTERM ask the workers for a checkpoint and an end.

    A second signal, or `STOP_PATIENCE_S` going by, is a KeyboardInterrupt at once. The work is done in
    another thread, so that this one hears signals and Ray does not answer them in its own ways: a stack trace
    on SIGTERM, and on Ctrl-C an end of this program as if all were well. Called elsewhere than in the main
    thread, where Python knows no signals, it does the work and nothing else.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    asked: list[float] = []

    def stop(*_: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(time.monotonic())

    outcome: dict[str, Any] = {}
    done = threading.Event()

    def do() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error
        finally:
            done.set()

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        threading.Thread(target=do, name="fit", daemon=True).start()
        told, head = False, _Head()
        while not done.wait(0.2):
            if asked and not told:
                say("stopping once a checkpoint is stored; a second Ctrl-C stops at once")
                board.ask_to_stop.remote()
                told = True
            if asked and time.monotonic() - asked[0] > STOP_PATIENCE_S:
                raise KeyboardInterrupt
            if head.is_gone():
                raise head.loss()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if "error" in outcome:
        # Ray may notice first, and then speaks of whatever it was about to call.
        if head.was_lost_by(outcome["error"]):
            raise head.loss() from outcome["error"]
        raise outcome["error"]
    return outcome["result"]


class _Head:
    """Whether the cluster's head still takes connections; Ray itself would wait for it for minutes.

    One that could never be reached directly, as through Ray's client, is not missed.
    """

    def __init__(self) -> None:
        import ray

        self.address = ray.get_runtime_context().gcs_address
        self._asked = 0.0
        self._answered: float | None = None

    def is_gone(self) -> bool:
        """Whether it has not answered for `HEAD_PATIENCE_S`; asks every `HEAD_POLL_S`."""
        now = time.monotonic()
        if now - self._asked > HEAD_POLL_S:
            self._asked = now
            if self._answers():
                self._answered = time.monotonic()
        return self._answered is not None and time.monotonic() - self._answered > HEAD_PATIENCE_S

    def was_lost_by(self, error: BaseException) -> bool:
        """Whether an error is Ray's own and the head, which answered before, answers no longer."""
        from ray.exceptions import RayError

        return isinstance(error, RayError) and self._answered is not None and not self._answers()

    def loss(self) -> ClusterGoneError:
        """What to tell the user."""
        return ClusterGoneError(
            f"the Ray head at {self.address} is gone: start it again (`mimic3d up`), then run the same "
            "command again; it goes on from the last checkpoint"
        )

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), HEAD_POLL_S).close()
        except OSError:
            return False
        return True


@contextlib.contextmanager
def followed(
    board: Any,
    on_progress: Callable[[Report], None] | None,
    on_note: Callable[[str], None] | None,
) -> Iterator[None]:
    """Tells of the board's reports and notes while the block runs, in a thread of its own."""
    import ray

    stop = threading.Event()
    told: set[str] = set()

    def look() -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            report, notes = ray.get([board.get.remote(), board.notes.remote()], timeout=10)
            for note in notes:
                if on_note is not None and note not in told:
                    on_note(note)
                told.add(note)
            if report is not None and on_progress is not None:
                on_progress(report)

    def follow() -> None:
        while not stop.wait(POLL_S):
            look()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=15)
        if not isinstance(sys.exception(), ClusterGoneError):
            look()
