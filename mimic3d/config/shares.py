"""The numbers of workers, and of parts of a worker's share, that a batch can be split into."""

from __future__ import annotations

STD_GROUP = 4
"""Samples whose deviation the discriminators see together (minibatch standard deviation, StyleGAN2)."""


def std_group(samples: int) -> int:
    """The size of the groups of minibatch standard deviation among the samples of one worker or part."""
    return min(STD_GROUP, samples)


def can_share(batch: int, workers: int, parts: int = 1) -> bool:
    """Whether workers can share a batch equally, each in `parts` parts of whole groups (`std_group`)."""
    if batch % workers:
        return False
    local = batch // workers
    return local % (parts * std_group(local)) == 0


def worker_counts(batch: int, most: int, parts: int = 1) -> list[int]:
    """The numbers of workers, from 1 to `most`, that `can_share` a batch."""
    return [workers for workers in range(1, most + 1) if can_share(batch, workers, parts)]
