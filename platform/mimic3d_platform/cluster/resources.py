"""How many workers of what kind train a run; with a range, as many as the cluster has room for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mimic3d.config import Config
from mimic3d_platform.errors import UserError


@dataclass(frozen=True)
class Processors:
    """What Ray Train workers get one each of: the GPUs of a cluster, or its CPUs if it has no GPU."""

    kind: Literal["GPU", "CPU"]
    count: int

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Processors:
        """Counts them in a cluster's total resources, such as `{"CPU": 8.0, "GPU": 2.0}`."""
        gpus = int(resources.get("GPU", 0))
        return cls("GPU", gpus) if gpus else cls("CPU", int(resources.get("CPU", 0)))


@dataclass(frozen=True)
class Scale:
    """The workers of a run: between `least` and `most`, one GPU each or one CPU each."""

    least: int
    most: int
    gpu: bool
    threads: int
    batch: int

    @property
    def elastic(self) -> bool:
        return self.least < self.most


def parse_workers(text: str | None) -> int | tuple[int, int] | None:
    """`4`, or `2:8` for as many as there is room for.

    Raises:
        UserError: it is neither.
    """
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) > 2 or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"--workers {text}: write a number, or LEAST:MOST such as 2:8")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def fewest_workers(text: str | None) -> int:
    """Returns the smallest number of workers that `--workers` allows; 1 if it is not given.

    Raises:
        UserError: it is neither a number nor a range, or below 1, or an empty range.
    """
    count = parse_workers(text)
    if count is None:
        return 1
    least, most = count if isinstance(count, tuple) else (count, count)
    if not 1 <= least <= most:
        raise UserError(f"--workers {text}: give a number from 1, or LEAST:MOST, such as 4 or 2:8")
    return least


def divisors(batch: int, most: int) -> list[int]:
    """Into how many equal parts, up to `most`, a batch can be split."""
    return [count for count in range(1, most + 1) if batch % count == 0]


def plan(config: Config, workers: int | tuple[int, int] | None) -> Scale:
    """How many workers of what kind; refused before anything starts if the cluster is too small.

    Args:
        workers: a number, a (least, most) range, or None for as many as there are.
    Raises:
        UserError: more than there are, or a number that cannot share the batch.
    """
    import ray

    resources = ray.cluster_resources()
    processors = Processors.of(resources)
    kind, there = processors.kind, processors.count
    accumulate = config.schedule.accumulate
    batch = config.schedule.batch // accumulate
    if workers is None:
        least = most = divisors(batch, max(there, 1))[-1]
    elif isinstance(workers, int):
        least = most = workers
    else:
        least, most = workers
    if least < 1 or least > there or most < least:
        asked = f"{least}" if least == most else f"{least}:{most}"
        raise UserError(f"{asked} workers need as many {kind}s, the cluster has {there}: change --workers")
    fitting = [count for count in divisors(batch, most) if count >= least]
    if not fitting:
        asked = f"{least}" if least == most else f"from {least} to {most}"
        micro = f" in {accumulate} parts" if accumulate > 1 else ""
        raise UserError(
            f"schedule.batch {config.schedule.batch}{micro} cannot be split among {asked} workers: "
            "change either"
        )
    gpu = processors.kind == "GPU"
    threads = max(1, int(resources.get("CPU", 0)) // max(most, 1)) if gpu else 1
    return Scale(fitting[0], fitting[-1], gpu, threads, batch)
