"""The result of a finished run, in its folder as `result.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from mimic3d_platform import storage

RESULT = "result.json"


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    name: str
    run_id: str
    """In MLflow."""
    checkpoint_uri: str
    metrics: dict[int, dict[str, float]]
    """By images consumed."""
    seconds: float
    """Spent in training steps."""

    def last_measurement(self) -> tuple[int, dict[str, float]]:
        """The images and the metrics of the last measurement; (0, {}) where there was none."""
        last = max(self.metrics, default=0)
        return last, self.metrics.get(last, {})


def read_result(runs_uri: str, name: str) -> TrainingResult | None:
    """The result of a run; None where it has not reached its end."""
    uri = storage.join(runs_uri, name, RESULT)
    if not storage.exists(uri):
        return None
    return parse_result(storage.read_bytes(uri))


def parse_result(content: bytes) -> TrainingResult:
    """The result that a file's content describes."""
    values = json.loads(content)
    metrics = {int(nimg): measured for nimg, measured in values.pop("metrics").items()}
    return TrainingResult(metrics=metrics, **values)


def delete_result(runs_uri: str, name: str) -> None:
    """Deletes a run's result, if it has one: the run is not at its end."""
    storage.delete_tree(storage.join(runs_uri, name, RESULT))


def write_result(runs_uri: str, result: TrainingResult) -> None:
    """Writes a run's result into its folder."""
    storage.write_bytes(storage.join(runs_uri, result.name, RESULT), json.dumps(asdict(result)).encode())
