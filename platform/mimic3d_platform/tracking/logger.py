"""Logs to one MLflow run from a thread: outages are waited for, and each entry arrives once.

Steps are images consumed (`nimg`). Entries wait in memory until the server has taken them.
"""

from __future__ import annotations

import io
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tenacity import RetryCallState, Retrying

from mimic3d_platform.errors import UserError, one_line
from mimic3d_platform.storage.retries import GrowingPauses
from mimic3d_platform.storage.uris import without_login
from mimic3d_platform.tracking.server import client, is_outage, tracking_uri

MAX_METRICS_PER_BATCH = 500  # MLflow's own limit.
# Entries that wait for a server that does not answer, some 100 MB: at one a second, half a day. Beyond that
# the oldest are lost, and `flush` says so.
MAX_WAITING = 50_000
LONGEST_PAUSE_S = 30.0
# For errors within the server, such as a locked database or artifact storage that does not answer.
MAX_ATTEMPTS = 20
FLUSH_S = 60.0


@dataclass(frozen=True)
class Metrics:
    """Values at a step, the images consumed."""

    values: Mapping[str, float]
    step: int
    time_ms: int
    """Milliseconds since 1970."""


@dataclass(frozen=True)
class Tag:
    """A tag of the run; a later one of the same key replaces it."""

    key: str
    value: str


@dataclass(frozen=True)
class File:
    """An artifact of the run. One such as `samples/000000200.png` is also an image of MLflow's step 200."""

    name: str
    content: bytes


Entry = Metrics | Tag | File


class RunLogger:
    """Logs to one run. `flush` raises what went wrong; nothing else does.

    A metric that the run already has at a step is not logged again. So a resumed run, which repeats the
    images since its checkpoint, leaves single points, and so does a request that the server carried out but
    could not answer.

    Args:
        run: its id, or a function that starts the run when the first entry is sent, and returns its id.
    """

    def __init__(self, run: str | Callable[[], str]) -> None:
        self._start = run if callable(run) else None
        self.run_id = "" if callable(run) else run
        self._client = client()
        self._queue: deque[Entry] = deque()
        self._sending: list[Entry] = []
        self._added = 0
        self._logged: dict[str, set[int]] | None = None
        self._images: set[tuple[str, int]] | None = None
        self._changed = threading.Condition()
        self._lost = 0
        self._failure: BaseException | None = None
        self._outage: BaseException | None = None
        self._thread = threading.Thread(target=self._send_all, name="mlflow-logger", daemon=True)
        self._thread.start()

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs metrics at `step`, the images consumed."""
        self.add(
            Metrics({name: float(value) for name, value in values.items()}, step, int(time.time() * 1000))
        )

    def add(self, entry: Entry) -> None:
        """Logs an entry."""
        with self._changed:
            if len(self._queue) >= MAX_WAITING:
                self._queue.popleft()
                self._lost += 1
            self._queue.append(entry)
            self._added += 1
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """The number of entries that the server has not received; refused ones do not count."""
        with self._changed:
            return len(self._queue) + len(self._sending)

    @property
    def taken(self) -> int:
        """The number of entries, in order, that the server has received or refused."""
        with self._changed:
            return self._added - len(self._queue) - len(self._sending)

    def flush(self, timeout: float = FLUSH_S) -> None:
        """Waits until all is sent.

        Raises:
            UserError: an entry could not be sent; says what and why, once.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._sending, timeout)
            waiting, lost, failure = len(self._queue) + len(self._sending), self._lost, self._failure
            self._lost, self._failure = 0, None
        if waiting or lost:
            cause = failure or self._outage
            reason = one_line(cause, 300) if cause and not is_outage(cause) else "it does not answer"
            what = (
                f"{waiting} entries wait to be logged and {lost} were lost"
                if lost
                else f"{waiting} entries wait"
            )
            raise UserError(
                f"MLflow at {without_login(tracking_uri())} did not take all of run "
                f"{self.run_id or '(not started)'}: {what}: "
                f"{reason}; the training itself is not affected, run the command again once MLflow answers"
            )

    def _send_all(self) -> None:
        """The thread's work: sends entries in order, and retries while the server does not answer."""
        while True:
            with self._changed:
                self._sending = []
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue)
                self._sending = [self._queue.popleft()]
                while (
                    isinstance(self._sending[0], Metrics)
                    and self._queue
                    and isinstance(self._queue[0], Metrics)
                    and len(self._sending) < MAX_METRICS_PER_BATCH
                ):
                    self._sending.append(self._queue.popleft())
                entries = list(self._sending)
            if not self._send_until_taken(entries):
                # An entry that the server refuses must not take the others with it.
                refused = sum(not self._send_until_taken([entry]) for entry in entries)
                with self._changed:
                    self._lost += refused

    def _send_until_taken(self, entries: list[Entry]) -> bool:
        """Sends entries with retries; returns False if the server refuses them."""

        def transient(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            if error is None:
                return False
            # The server may have carried the request out before it could answer: ask again what it has.
            self._logged = self._images = None
            if isinstance(error, UserError) and error.__cause__ is not None:  # Of starting the run.
                error = error.__cause__
            return is_outage(error) or (_is_server_error(error) and state.attempt_number <= MAX_ATTEMPTS)

        def before_pause(state: RetryCallState) -> None:
            self._outage = state.outcome.exception() if state.outcome else None

        retrying = Retrying(
            retry=transient,
            wait=GrowingPauses(longest_s=LONGEST_PAUSE_S),
            before_sleep=before_pause,
            reraise=True,
        )
        try:
            retrying(self._send, entries)
        except Exception as error:
            self._failure = error
            return False
        self._outage = None
        return True

    def _send(self, entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        if not self.run_id and self._start is not None:
            self.run_id = self._start()
        new: dict[tuple[str, int], Metric] = {}
        for entry in entries:
            if isinstance(entry, File):
                self._send_file(entry)
            elif isinstance(entry, Tag):
                self._client.set_tag(self.run_id, entry.key, entry.value)
            else:
                for name, value in entry.values.items():
                    if entry.step not in self._steps(name):
                        new.setdefault((name, entry.step), Metric(name, value, entry.time_ms, entry.step))
        metrics = list(new.values())
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            batch = metrics[start : start + MAX_METRICS_PER_BATCH]
            self._client.log_batch(self.run_id, metrics=batch)
            for metric in batch:
                self._steps(metric.key).add(metric.step)

    def _send_file(self, file: File) -> None:
        target = Path(file.name)
        folder = None if str(target.parent) == "." else str(target.parent)
        with tempfile.TemporaryDirectory(prefix="mimic3d-log-") as parent:
            path = Path(parent, target.name)
            path.write_bytes(file.content)
            self._client.log_artifact(self.run_id, str(path), folder)
        if folder is not None and target.suffix == ".png" and target.stem.isdigit():
            self._send_image(folder, int(target.stem), file.content)

    def _send_image(self, key: str, step: int, content: bytes) -> None:
        """Logs an image by key and step, which MLflow's page shows with a slider, unless the run has it."""
        if self._images is None:
            # MLflow names them images/KEY%step%STEP%….png; an older version had + in place of %.
            names = [Path(file.path).name for file in self._client.list_artifacts(self.run_id, "images")]
            found = [re.fullmatch(r"(.+?)[%+]step[%+](\d+)[%+].*", name) for name in names]
            self._images = {(match[1], int(match[2])) for match in found if match}
        if (key, step) in self._images:
            return
        try:
            image = Image.open(io.BytesIO(content))
        except UnidentifiedImageError:
            return  # The file itself is logged in any case.
        self._client.log_image(self.run_id, image, key=key, step=step, synchronous=True)
        self._images.add((key, step))

    def _steps(self, name: str) -> set[int]:
        """The steps at which the run has the metric `name`: asked of the server once, then kept."""
        if self._logged is None:
            known = self._client.get_run(self.run_id).data.metrics
            self._logged = {
                key: {metric.step for metric in self._client.get_metric_history(self.run_id, key)}
                for key in known
            }
        return self._logged.setdefault(name, set())


def _is_server_error(error: BaseException) -> bool:
    """Whether the server itself failed, rather than refused the request."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    return status >= 500 or getattr(error, "error_code", "") == "INTERNAL_ERROR"
