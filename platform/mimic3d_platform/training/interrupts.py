"""Ctrl-C, SIGTERM and the loss of the Ray head while a driver waits for its workers."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from mimic3d_platform.cluster.head import HeadMonitor

# After a first signal the workers have this long to store a checkpoint.
STOP_PATIENCE_S = 20.0


def run_interruptible(work: Callable[[], None], request_stop: Callable[[], None]) -> None:
    """Runs `work` in another thread while this one answers signals.

    The first Ctrl-C or SIGTERM calls `request_stop`. In the main thread Ray would answer signals itself: with
    a stack trace on SIGTERM, and with an exit of status 0 on Ctrl-C. Called outside the main thread, where
    Python handles no signals, this only runs `work`.

    Raises:
        KeyboardInterrupt: on a second signal, or `STOP_PATIENCE_S` after the first.
        ClusterGoneError: the Ray head is lost.
        BaseException: what `work` raises.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    signalled: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if signalled:
            raise KeyboardInterrupt
        signalled.append(time.monotonic())

    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        threading.Thread(target=run, name="workers", daemon=True).start()
        requested, head = False, HeadMonitor()
        while not done.wait(0.2):
            if signalled and not requested:
                request_stop()
                requested = True
            if signalled and time.monotonic() - signalled[0] > STOP_PATIENCE_S:
                raise KeyboardInterrupt
            if head.is_lost():
                raise head.error()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    for error in errors:
        # Ray may notice a lost head first; its error then names whatever call it was about to make.
        if head.explains(error):
            raise head.error() from error
        raise error
