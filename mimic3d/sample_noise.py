"""The networks' random numbers, a row for each sample: noise maps, jitter of rays, points of the density.

They come from PyTorch's global generators, or from the source that a context sets for all calls inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Source = Callable[[Callable[..., Tensor], tuple[int, ...], torch.device], Tensor]
"""(torch.rand or torch.randn, shape, device) to a tensor of that shape."""

_SOURCE: ContextVar[Source | None] = ContextVar("source", default=None)


def uniform_rows(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) of `shape`, whose first dimension is the batch's samples."""
    return _draw(torch.rand, shape, device)


def normal_rows(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal numbers of `shape`, whose first dimension is the batch's samples."""
    return _draw(torch.randn, shape, device)


@contextmanager
def rows_of_batch(rows: slice | Tensor, batch: int) -> Iterator[None]:
    """Inside, the samples are `rows` of a batch: their numbers are those that all of it would get."""

    def draw(function: Callable[..., Tensor], shape: tuple[int, ...], device: torch.device) -> Tensor:
        return function((batch, *shape[1:]), device=device)[rows]

    with noise_source(draw):
        yield


@contextmanager
def noise_source(source: Source) -> Iterator[None]:
    """Inside, random numbers come from `source`."""
    token = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(token)


def _draw(function: Callable[..., Tensor], shape: tuple[int, ...], device: torch.device) -> Tensor:
    source = _SOURCE.get()
    return function(shape, device=device) if source is None else source(function, shape, device)
