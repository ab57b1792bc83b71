"""How far a run is, told from its workers to whoever started it; and what that one tells the workers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from mimic3d.config import Config
from mimic3d_platform.errors import UserError

# Attempts in a row that end where they began; a run that gains ground between its failures goes on.
MAX_FRUITLESS = 5
NAMESPACE = "mimic3d"
# A driver that was killed leaves its board behind for a moment.
CLAIM_PATIENCE_S = 45.0


@dataclass(frozen=True)
class Report:
    """A run at one moment."""

    doing: str
    """In a few words, such as "stage 1" or "measuring"."""
    nimg: int
    total_nimg: int
    images_per_second: float = 0.0
    seconds_left: float | None = None
    at_least: bool = False
    """Whether `seconds_left` leaves out how much slower the next stage is, which nobody knows yet."""
    train_seconds: float = 0.0
    data_wait: float = 0.0
    """The share of the last steps' time that was spent waiting for data."""
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """What has been measured so far, by images consumed."""
    url: str | None = None
    """The run's page in MLflow, told once, with the first report."""


def time_left(config: Config, nimg: int, stage: int, rate: float) -> tuple[float | None, bool]:
    """Seconds to the end at the present stage's speed, and whether that is only the least they can be.

    Stage 2 renders a patch with every image and is slower, by how much nobody knows before it has begun.

    Args:
        stage: that `rate`, in images a second, was seen in; 0 when none was.
    """
    if not rate or not stage or (stage == 1 and nimg > config.stage1_nimg):
        return None, False
    return (config.total_nimg - nimg) / rate, stage == 1 and config.total_nimg > config.stage1_nimg


class _Board:
    def __init__(self, holder: str) -> None:
        self._holder = holder
        self._report: Report | None = None
        self._failure: str | None = None
        self._cause: str | None = None
        self._notes: list[str] = []
        self._stop = False
        self._stopped_at: int | None = None
        self._starts: list[int] = []

    def holder(self) -> str:
        return self._holder

    def put(self, report: Report) -> None:
        self._report = report

    def get(self) -> Report | None:
        return self._report

    def fail(self, failure: str) -> None:
        self._failure = failure

    def failure(self) -> str | None:
        return self._failure

    def note(self, line: str) -> None:
        if line not in self._notes:
            self._notes.append(line)

    def notes(self) -> list[str]:
        return list(self._notes)

    def ask_to_stop(self) -> None:
        self._stop = True

    def stopping(self) -> bool:
        return self._stop

    def stopped(self, nimg: int) -> None:
        self._stopped_at = nimg

    def stopped_at(self) -> int | None:
        return self._stopped_at

    def cause(self, line: str) -> None:
        self._cause = line

    def begin(self, nimg: int) -> str | None:
        """Notes an attempt that starts at `nimg`; says why there should be no more of them, or None."""
        self._starts.append(nimg)
        last = self._starts[-MAX_FRUITLESS:]
        if len(last) == MAX_FRUITLESS and len(set(last)) == 1:
            cause = self._cause or "its workers died, as they do when memory runs out"
            self._failure = f"it failed {MAX_FRUITLESS - 1} times in a row at {nimg} images: {cause}"
        return self._failure

    def restarts(self) -> int:
        return max(len(self._starts) - 1, 0)


class ProgressBoard:
    """A Ray actor that holds the newest `Report`, notes to the user, and requests to the workers.

    A run has one board, so it is also what keeps two processes from training the same run at once.
    """

    @staticmethod
    def claim(runs_uri: str, run: str) -> Any:
        """Starts the run's board; it lives as long as its handle and this process.

        Raises:
            UserError: another process trains the run.
        """
        import ray

        name = _name(runs_uri, run)
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        make = ray.remote(num_cpus=0, name=name, namespace=NAMESPACE)(_Board)
        deadline = time.monotonic() + CLAIM_PATIENCE_S
        while True:
            try:
                board = make.remote(holder)
                ray.get(board.holder.remote())
                return board
            except (ValueError, ray.exceptions.RayActorError):
                if time.monotonic() > deadline:
                    break
                time.sleep(1.0)
        other = "another process"
        with contextlib.suppress(Exception):
            other = ray.get(ray.get_actor(name, NAMESPACE).holder.remote(), timeout=10)
        raise UserError(
            f"the run {run} is being trained by {other}: wait for it, stop it, or give another --name"
        )

    @staticmethod
    def find(runs_uri: str, run: str) -> Any | None:
        """The board of a run that is being trained somewhere on the cluster, or None."""
        import ray

        try:
            return ray.get_actor(_name(runs_uri, run), NAMESPACE)
        except ValueError:
            return None


def _name(runs_uri: str, run: str) -> str:
    return "run-" + hashlib.sha256(f"{runs_uri.rstrip('/')}/{run}".encode()).hexdigest()[:16]
