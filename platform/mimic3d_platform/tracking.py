"""MLflow runs: started or found again, and a logger that outlasts short outages.

The driver makes the runs and hands their ids to the workers; rank 0 logs. Steps are images consumed (`nimg`).
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from mimic3d_platform.errors import UserError
from mimic3d_platform.mlflow_server import (
    check_tracking,
    client,
    is_outage,
    one_line,
    shown,
    tracking_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

__all__ = ["RunLogger", "check_tracking", "find_run", "finish_run", "run_url", "start_or_resume_run"]

# MLflow's own limits.
MAX_PARAM_LENGTH, MAX_KEY_LENGTH, MAX_PARAMS_PER_BATCH, MAX_METRICS_PER_BATCH = 6000, 250, 100, 500
# A run is found again by this tag: the name that MLflow shows can be edited there.
RUN_NAME_TAG = "mimic3d.run_name"
PARENT_TAG = "mlflow.parentRunId"

# Entries that wait for a server that is away; beyond that the oldest are lost, and `flush` says so.
MAX_PENDING = 5000
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
FLUSH_S = 60.0


def start_or_resume_run(
    experiment: str,
    run_name: str,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
) -> str:
    """The id of the run `run_name`, found again if an earlier start made it, else made.

    Args:
        experiment: made unless it is there.
        run_name: unique within the experiment, or within the parent.
        params: may be nested, as a config is; keys become dotted paths. What a resumed run has stays, since
            MLflow's parameters cannot change. `SecretStr` values are left out, long ones cut.
        tags: set anew on a resumed run.
        parent_run_id: makes the run a child of that one.
    Raises:
        UserError: MLflow does not answer or refuses, or the experiment was deleted there.
    """
    from mlflow.entities import Param, RunTag

    mlflow_client = client()
    with tracking_errors(f"start the run {run_name!r} in"):
        experiment_id = _experiment(mlflow_client, experiment)
        own_tags = {RUN_NAME_TAG: run_name, **(tags or {})}
        if parent_run_id:
            own_tags[PARENT_TAG] = parent_run_id
        run = find_run(experiment_id, run_name, parent_run_id)
        known: Mapping[str, str] = {}
        if run is None:
            run = mlflow_client.create_run(experiment_id, run_name=run_name, tags=own_tags)
        else:
            known = run.data.params
            mlflow_client.update_run(run.info.run_id, status="RUNNING")
            batch = [RunTag(key, str(value)) for key, value in own_tags.items()]
            mlflow_client.log_batch(run.info.run_id, tags=batch)
        flat = flat_params(params or {})
        new = [Param(key, value) for key, value in flat.items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS_PER_BATCH):
            mlflow_client.log_batch(run.info.run_id, params=new[start : start + MAX_PARAMS_PER_BATCH])
        return str(run.info.run_id)


def find_run(experiment_id: str, run_name: str, parent_run_id: str | None = None) -> Any | None:
    """The newest run that `start_or_resume_run` made under this name and parent, or None."""
    quote = '"' if "'" in run_name else "'"
    if quote in run_name:
        raise UserError(f"run name {run_name!r}: use one kind of quotation mark at most")
    clause = f"tags.`{RUN_NAME_TAG}` = {quote}{run_name}{quote}"
    if parent_run_id:
        clause += f" and tags.`{PARENT_TAG}` = '{parent_run_id}'"
    runs = client().search_runs([experiment_id], clause, order_by=["attributes.start_time DESC"])
    return next((run for run in runs if run.data.tags.get(PARENT_TAG) == parent_run_id), None)


def finish_run(run_id: str, status: str = "FINISHED") -> None:
    """Close a run: `FINISHED`, `FAILED` or `KILLED`."""
    with tracking_errors("close a run in"):
        client().set_terminated(run_id, status)


def run_url(run_id: str) -> str | None:
    """The run's page; None where MLflow is not a server."""
    uri = shown(tracking_uri()).rstrip("/")
    if not uri.startswith("http"):
        return None
    with tracking_errors("look up a run in"):
        experiment_id = client().get_run(run_id).info.experiment_id
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}"


def download_artifacts(run_id: str, folder: str, destination: str | Path) -> Path:
    """Copies the artifacts below `folder` of a run into `destination`, which is made if need be."""
    import mlflow

    destination = Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    with tracking_errors("download artifacts from"), tempfile.TemporaryDirectory(dir=destination) as partial:
        fetched = Path(
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=folder, dst_path=partial)
        )
        for file in fetched.iterdir():
            file.replace(destination / file.name)
    return destination


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as MLflow's parameters: dotted keys, values as text cut to its limit, no secrets."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{path}.")
        elif not isinstance(value, SecretStr):
            text = shown(value) if isinstance(value, str) and "://" in value else str(value)
            ending = f"… ({len(text)} characters)"
            cut = text[: MAX_PARAM_LENGTH - len(ending)] + ending
            key = re.sub(r"[^\w\-. /:]", "_", path, flags=re.ASCII)[-MAX_KEY_LENGTH:]
            flat[key] = text if len(text) <= MAX_PARAM_LENGTH else cut
    return flat


def _experiment(mlflow_client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        try:
            return mlflow_client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = mlflow_client.get_experiment_by_name(name)  # Another process was quicker.
    if found.lifecycle_stage == "deleted":
        raise UserError(f"the experiment {name!r} was deleted in MLflow; restore it there or name another")
    return str(found.experiment_id)


@dataclass
class _Metrics:
    values: dict[str, float]
    step: int
    timestamp: int


@dataclass
class _Artifact:
    name: str
    send: Callable[[], None]


class RunLogger:
    """Logs to one run; nothing it does raises before `flush` or `close`.

    A metric that the run already has at a step is not logged again, so that a resumed run which repeats the
    images since its checkpoint leaves single points. As a context manager it closes the run: `FINISHED`, or
    `FAILED` when left by an error.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._client = client()
        self._queue: deque[_Metrics | _Artifact] = deque()
        self._logged: dict[str, set[int]] | None = None
        self._changed = threading.Condition()
        self._busy = False
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
        self._add_bytes(buffer.getvalue(), name)

    def log_text(self, text: str, name: str) -> None:
        """Store text as the artifact `name`."""
        self._add_bytes(text.encode(), name)

    def log_dict(self, values: Mapping[str, Any], name: str) -> None:
        """Store a mapping as the JSON artifact `name`."""
        self.log_text(json.dumps(values, indent=2) + "\n", name)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Store a file, or all below a folder, in the artifact folder `folder`; keep it until `flush`."""
        path = Path(path)

        def send() -> None:
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder)
            else:
                self._client.log_artifact(self.run_id, str(path), folder)

        self._add(_Artifact(path.name, send))

    def flush(self, timeout: float = FLUSH_S) -> None:
        """Wait until all is sent.

        Raises:
            UserError: something could not be sent; says what and why, once.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._busy, timeout)
            waiting, lost, failure = len(self._queue) + self._busy, self._lost, self._failure
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

    def _add_bytes(self, data: bytes, name: str) -> None:
        target = Path(name)
        folder = None if str(target.parent) == "." else str(target.parent)

        def send() -> None:
            with tempfile.TemporaryDirectory(prefix="mimic3d-log-") as place:
                file = Path(place, target.name)
                file.write_bytes(data)
                self._client.log_artifact(self.run_id, str(file), folder)

        self._add(_Artifact(name, send))

    def _add(self, entry: _Metrics | _Artifact) -> None:
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
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closing)
                if self._closing:
                    return
                entries = [self._queue.popleft()]
                while (
                    isinstance(entries[0], _Metrics) and self._queue and len(entries) < MAX_METRICS_PER_BATCH
                ):
                    if not isinstance(self._queue[0], _Metrics):
                        break
                    entries.append(self._queue.popleft())
                self._busy = True
            self._send_until_taken(entries)

    def _send_until_taken(self, entries: list[_Metrics | _Artifact]) -> None:
        attempt = 0
        while not self._closing:
            try:
                self._send(entries)
                self._outage = None
                return
            except Exception as error:
                if not is_outage(error):
                    with self._changed:
                        self._lost += len(entries)
                        self._failure = error
                    return
                self._outage = error
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, RETRY_S[min(attempt, len(RETRY_S) - 1)])
                attempt += 1

    def _send(self, entries: list[_Metrics | _Artifact]) -> None:
        from mlflow.entities import Metric

        fresh: dict[tuple[str, int], Metric] = {}
        for entry in entries:
            if isinstance(entry, _Artifact):
                entry.send()
                continue
            for name, value in entry.values.items():
                if entry.step not in self._steps(name):
                    fresh.setdefault((name, entry.step), Metric(name, value, entry.timestamp, entry.step))
        metrics = list(fresh.values())
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            batch = metrics[start : start + MAX_METRICS_PER_BATCH]
            self._client.log_batch(self.run_id, metrics=batch)
            for metric in batch:
                self._steps(metric.key).add(metric.step)

    def _steps(self, name: str) -> set[int]:
        """The steps at which the run has the metric `name`: asked of the server once, then kept."""
        if self._logged is None:
            known = self._client.get_run(self.run_id).data.metrics
            self._logged = {
                key: {metric.step for metric in self._client.get_metric_history(self.run_id, key)}
                for key in known
            }
        return self._logged.setdefault(name, set())
