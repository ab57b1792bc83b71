"""How far a run is, told from its workers to whoever started it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """A run at one moment."""

    doing: str
    """In a few words, such as "stage 1" or "measuring"."""
    nimg: int
    total_nimg: int
    images_per_second: float = 0.0
    seconds_left: float | None = None
    train_seconds: float = 0.0
    data_wait: float = 0.0
    """The share of the last steps' time that was spent waiting for data."""
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """What has been measured so far, by images consumed."""
    url: str | None = None
    """The run's page in MLflow, told once, with the first report."""


class _Board:
    def __init__(self) -> None:
        self._report: Report | None = None
        self._failure: str | None = None

    def put(self, report: Report) -> None:
        self._report = report

    def get(self) -> Report | None:
        return self._report

    def fail(self, failure: str) -> None:
        self._failure = failure

    def failure(self) -> str | None:
        return self._failure


class ProgressBoard:
    """A Ray actor that holds the newest `Report`, and the failure that no further attempt would mend."""

    @staticmethod
    def remote() -> Any:
        """Starts one; it lives as long as its handle."""
        import ray

        return ray.remote(num_cpus=0)(_Board).remote()
