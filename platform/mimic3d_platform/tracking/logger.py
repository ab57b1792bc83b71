"""A logger of one MLflow run that outlasts outages: what it is told arrives once, now or later.

Steps are images consumed (`nimg`). Entries wait in memory until the server has taken them. What still waits
when a checkpoint is made is stored with it, so that a run which dies during an outage and goes on from there
sends it then.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying

from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.retries import GrowingPauses
from mimic3d_platform.tracking import finish_run
from mimic3d_platform.tracking.server import client, is_outage, one_line, shown, tracking_uri

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_METRICS_PER_BATCH = 500  # MLflow's own limit.
# Entries that wait for a server that is away, some 100 MB: at one a second, half a day. Beyond that the
# oldest are lost, and `flush` says so.
MAX_PENDING = 50_000
LONGEST_PAUSE_S = 30.0
# For errors within the server, such as a database that is locked or artifact storage that is away.
MAX_ATTEMPTS = 20
FLUSH_S = 60.0


@dataclass(frozen=True)
class _Metrics:
    values: dict[str, float]
    step: int
    timestamp: int


@dataclass(frozen=True)
class _File:
    name: str
    content: bytes


@dataclass(frozen=True)
class _Tag:
    key: str
    value: str


_Entry = _Metrics | _File | _Tag


class RunLogger:
    """Logs to one run; nothing it does raises before `flush` or `close`.

    A metric that the run already has at a step is not logged again, so that a resumed run which repeats the
    images since its checkpoint leaves single points, and so does a request that the server carried out but
    could not answer. As a context manager it closes the run: `FINISHED`, or `FAILED` when left by an error.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._client = client()
        self._queue: deque[_Entry] = deque()
        self._sending: list[_Entry] = []
        self._logged: dict[str, set[int]] | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._lost = 0
        self._failure: BaseException | None = None
        self._outage: BaseException | None = None
        self._thread = threading.Thread(target=self._send_all, name="mlflow-logger", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at `step`, the images consumed."""
        values = {name: float(value) for name, value in metrics.items()}
        self._add(_Metrics(values, step, int(time.time() * 1000)))

    def log_image(self, image: Image, name: str) -> None:
        """Store an image as the artifact `name`, such as `samples/000200.png`."""
        buffer = io.BytesIO()
        image.save(buffer, Path(name).suffix[1:] or "png")
        self._add(_File(name, buffer.getvalue()))

    def log_text(self, text: str, name: str) -> None:
        """Store text as the artifact `name`."""
        self._add(_File(name, text.encode()))

    def log_dict(self, values: Mapping[str, Any], name: str) -> None:
        """Store a mapping as the JSON artifact `name`."""
        self.log_text(json.dumps(values, indent=2) + "\n", name)

    def set_tag(self, key: str, value: str) -> None:
        """Give the run a tag, or the tag another value."""
        self._add(_Tag(key, value))

    def pending(self) -> list[dict[str, Any]]:
        """What the server has not taken yet, oldest first, as plain values for `restore`."""
        with self._changed:
            return [_packed(entry) for entry in (*self._sending, *self._queue)]

    def restore(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Takes over what `pending` of an earlier logger of the run gave."""
        for entry in entries:
            self._add(_unpacked(entry))

    def flush(self, timeout: float = FLUSH_S) -> None:
        """Wait until all is sent.

        Raises:
            UserError: something could not be sent; says what and why, once.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._sending, timeout)
            waiting, lost, failure = len(self._queue) + len(self._sending), self._lost, self._failure
            self._lost, self._failure = 0, None
        if waiting or lost:
            cause = failure or self._outage
            reason = one_line(cause) if cause and not is_outage(cause) else "it does not answer"
            what = (
                f"{waiting} entries wait to be logged and {lost} were lost"
                if lost
                else f"{waiting} entries wait"
            )
            raise UserError(
                f"MLflow at {shown(tracking_uri())} did not take all of run {self.run_id}: {what}: {reason}; "
                "the training itself is not affected, resume it once MLflow answers"
            )

    def close(self, status: str = "FINISHED") -> None:
        """Send what waits and close the run (`FINISHED`, `FAILED`, `KILLED`).

        Raises:
            UserError: as `flush`.
        """
        try:
            self.flush()
            finish_run(self.run_id, status)
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
            return
        # The error that ended the training is the one to be seen.
        with contextlib.suppress(UserError):
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _add(self, entry: _Entry) -> None:
        with self._changed:
            if len(self._queue) >= MAX_PENDING:
                self._queue.popleft()
                self._lost += 1
            self._queue.append(entry)
            self._changed.notify_all()

    def _send_all(self) -> None:
        """The thread's work: take entries in order, send them, and try again while the server is away."""
        while True:
            with self._changed:
                self._sending = []
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closing)
                if self._closing:
                    return
                self._sending = [self._queue.popleft()]
                while (
                    isinstance(self._sending[0], _Metrics)
                    and self._queue
                    and isinstance(self._queue[0], _Metrics)
                    and len(self._sending) < MAX_METRICS_PER_BATCH
                ):
                    self._sending.append(self._queue.popleft())
                entries = list(self._sending)
            if not self._send_until_taken(entries):
                # One that the server refuses must not take the others with it.
                refused = sum(not self._send_until_taken([entry]) for entry in entries)
                with self._changed:
                    self._lost += refused

    def _send_until_taken(self, entries: list[_Entry]) -> bool:
        """False when the server refuses them, which no later attempt would change."""

        def transient(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            if error is None:
                return False
            # The server may have carried it out before it could answer: what it has is asked anew.
            self._logged = None
            return is_outage(error) or (_may_pass(error) and state.attempt_number <= MAX_ATTEMPTS)

        def before_pause(state: RetryCallState) -> None:
            self._outage = state.outcome.exception() if state.outcome else None

        def pause(seconds: float) -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._closing, seconds)

        retrying = Retrying(
            retry=transient,
            wait=GrowingPauses(longest_s=LONGEST_PAUSE_S),
            stop=lambda state: self._closing,
            before_sleep=before_pause,
            sleep=pause,
            reraise=True,
        )
        try:
            retrying(self._send, entries)
        except Exception as error:
            if self._closing:
                return True
            self._failure = error
            return False
        self._outage = None
        return True

    def _send(self, entries: list[_Entry]) -> None:
        from mlflow.entities import Metric

        fresh: dict[tuple[str, int], Metric] = {}
        for entry in entries:
            if isinstance(entry, _File):
                self._send_file(entry)
            elif isinstance(entry, _Tag):
                self._client.set_tag(self.run_id, entry.key, entry.value)
            else:
                for name, value in entry.values.items():
                    if entry.step not in self._steps(name):
                        fresh.setdefault((name, entry.step), Metric(name, value, entry.timestamp, entry.step))
        metrics = list(fresh.values())
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            batch = metrics[start : start + MAX_METRICS_PER_BATCH]
            self._client.log_batch(self.run_id, metrics=batch)
            for metric in batch:
                self._steps(metric.key).add(metric.step)

    def _send_file(self, file: _File) -> None:
        target = Path(file.name)
        folder = None if str(target.parent) == "." else str(target.parent)
        with tempfile.TemporaryDirectory(prefix="mimic3d-log-") as place:
            path = Path(place, target.name)
            path.write_bytes(file.content)
            self._client.log_artifact(self.run_id, str(path), folder)

    def _steps(self, name: str) -> set[int]:
        """The steps at which the run has the metric `name`: asked of the server once, then kept."""
        if self._logged is None:
            known = self._client.get_run(self.run_id).data.metrics
            self._logged = {
                key: {metric.step for metric in self._client.get_metric_history(self.run_id, key)}
                for key in known
            }
        return self._logged.setdefault(name, set())


def _may_pass(error: BaseException) -> bool:
    """Whether the server itself failed, rather than refused what it was asked."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    return status >= 500 or getattr(error, "error_code", "") == "INTERNAL_ERROR"


def _packed(entry: _Entry) -> dict[str, Any]:
    if isinstance(entry, _Metrics):
        return {"metrics": entry.values, "step": entry.step, "timestamp": entry.timestamp}
    if isinstance(entry, _Tag):
        return {"tag": entry.key, "value": entry.value}
    return {"file": entry.name, "content": base64.b64encode(entry.content).decode()}


def _unpacked(values: Mapping[str, Any]) -> _Entry:
    if "metrics" in values:
        return _Metrics(dict(values["metrics"]), values["step"], values["timestamp"])
    if "tag" in values:
        return _Tag(values["tag"], values["value"])
    return _File(values["file"], base64.b64decode(values["content"]))
