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


def read_result(runs_uri: str, name: str) -> TrainingResult | None:
    """The result of a run; None where it has not reached its end."""
    uri = storage.join(runs_uri, name, RESULT)
    if not storage.exists(uri):
        return None
    values = json.loads(storage.read_bytes(uri))
    metrics = {int(nimg): measured for nimg, measured in values.pop("metrics").items()}
    return TrainingResult(metrics=metrics, **values)


def delete_result(runs_uri: str, name: str) -> None:
    """Deletes a run's result, if it has one: the run is not at its end."""
    storage.delete_tree(storage.join(runs_uri, name, RESULT))


def write_result(runs_uri: str, result: TrainingResult) -> None:
    storage.write_bytes(storage.join(runs_uri, result.name, RESULT), json.dumps(asdict(result)).encode())
