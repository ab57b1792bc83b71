"""The resources of a Ray cluster, and how many training workers they are divided into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mimic3d.config import Config
from mimic3d.config.shares import worker_counts
from mimic3d_platform.errors import UserError


@dataclass(frozen=True)
class Processors:
    """A cluster's GPUs, or its CPUs if it has no GPU: each Ray Train worker gets one."""

    kind: Literal["GPU", "CPU"]
    count: int

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Processors:
        """Counts them in a cluster's total resources, such as `{"CPU": 8.0, "GPU": 2.0}`."""
        gpus = int(resources.get("GPU", 0))
        return cls("GPU", gpus) if gpus else cls("CPU", int(resources.get("CPU", 0)))


@dataclass(frozen=True)
class WorkerPlan:
    """The number of workers of a run, and what each of them gets."""

    counts: tuple[int, ...]
    """The numbers that the run may have, which all can share its batch; several of an elastic run."""
    gpu: bool
    """Whether a worker gets a GPU; else it gets a CPU."""
    threads: int
    """PyTorch's, in each worker."""
    batch: int
    """Images that the workers share at a time: the batch, or one of the parts of `schedule.accumulate`."""
    spare: bool = False
    """True if the cluster has more processors than the workers take at most."""

    @property
    def least(self) -> int:
        """The smallest number of workers."""
        return self.counts[0]

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.counts[-1]

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change during the run."""
        return self.least < self.most


def parse_workers(text: str | None) -> int | tuple[int, int] | None:
    """Parses `--workers`: `4`, or `2:8` for a range (least, most).

    Raises:
        UserError: it is neither a number nor a range.
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


def plan_workers(config: Config, workers: int | tuple[int, int] | None) -> WorkerPlan:
    """Chooses the number of workers of a run on the cluster that this process is connected to.

    Args:
        workers: a number, a range (least, most), or None for as many as the cluster has processors.
    Raises:
        UserError: the cluster has too few processors, or the batch cannot be divided among the workers.
    """
    import ray

    resources = ray.cluster_resources()
    processors = Processors.of(resources)
    batch, accumulate = config.schedule.batch, config.schedule.accumulate
    if workers is None:
        least = most = max(worker_counts(batch, processors.count, accumulate), default=1)
    elif isinstance(workers, int):
        least = most = workers
    else:
        least, most = workers
    if least < 1 or least > processors.count or most < least:
        wanted = f"{least}" if least == most else f"{least}:{most}"
        raise UserError(
            f"{wanted} workers need as many {processors.kind}s, the cluster has {processors.count}: change "
            "--workers"
        )
    fitting = tuple(count for count in worker_counts(batch, most, accumulate) if count >= least)
    if not fitting:
        wanted = f"{least}" if least == most else f"from {least} to {most}"
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise UserError(
            f"schedule.batch {batch}{parts} cannot be split among {wanted} workers in equal shares of fewer "
            "than 4, or a multiple of 4, images: change either"
        )
    gpu = processors.kind == "GPU"
    threads = max(1, int(resources.get("CPU", 0)) // max(most, 1)) if gpu else 1
    return WorkerPlan(fitting, gpu, threads, batch // accumulate, processors.count > fitting[-1])
