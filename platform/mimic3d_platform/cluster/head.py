"""Whether the head of the Ray cluster that this process has joined is still there."""

from __future__ import annotations

import socket
import time

import ray
from ray.exceptions import RayError

from mimic3d_platform.errors import ClusterGoneError

POLL_S = 3.0
PATIENCE_S = 20.0


class HeadMonitor:
    """Connects to the cluster's head every `POLL_S`; Ray itself would wait for a lost one for minutes.

    A head that never answered, as one behind Ray's client may not, does not count as lost.
    """

    def __init__(self) -> None:
        self._address = ray.get_runtime_context().gcs_address
        self._asked = 0.0
        self._answered: float | None = None

    def is_lost(self) -> bool:
        """Whether the head has not answered for `PATIENCE_S`; connects if `POLL_S` have passed."""
        now = time.monotonic()
        if now - self._asked > POLL_S:
            self._asked = now
            if self._answers():
                self._answered = time.monotonic()
        return self._answered is not None and time.monotonic() - self._answered > PATIENCE_S

    def explains(self, error: BaseException) -> bool:
        """Whether an error is Ray's own and the head, which answered before, answers no longer."""
        return isinstance(error, RayError) and self._answered is not None and not self._answers()

    def error(self) -> ClusterGoneError:
        """The error to raise when the head is lost."""
        return ClusterGoneError(
            f"the Ray head at {self._address} is gone: start it again (`mimic3d up`), then run the same "
            "command again; it resumes from the last checkpoint"
        )

    def _answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), POLL_S).close()
        except OSError:
            return False
        return True
