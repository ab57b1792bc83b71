"""The networks' random numbers, a row for each sample: noise maps, jitter of rays, points of the density.

They come from PyTorch's global generators, or from the source that a context sets for all calls inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from mimic3d.randomness import generator_keys, hashed_uniform

Draw = Callable[..., Tensor]
"""torch.rand or torch.randn."""
Source = Callable[[Draw, tuple[int, ...], torch.device, str, int], Tensor]
"""(draw, shape, device, stream, first) to random numbers of `shape`; see `uniform_rows`."""

_SOURCE: ContextVar[Source | None] = ContextVar("source", default=None)


def uniform_rows(shape: tuple[int, ...], device: torch.device, *, stream: str = "", first: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) of `shape`, whose first dimension is the batch's samples.

    Args:
        stream, first: where numbers of one kind are drawn in several calls, the kind, and the index of this
            call's first row along the second dimension. A source may make numbers of them that do not depend
            on how the calls are divided.
    """
    return _draw(torch.rand, shape, device, stream, first)


def normal_rows(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal numbers of `shape`, whose first dimension is the batch's samples."""
    return _draw(torch.randn, shape, device, "", 0)


@contextmanager
def rows_of_batch(rows: slice | Tensor, batch: int) -> Iterator[None]:
    """Inside, the samples are `rows` of a batch: their numbers are those that all of it would get."""

    def source(draw: Draw, shape: tuple[int, ...], device: torch.device, stream: str, first: int) -> Tensor:
        return draw((batch, *shape[1:]), device=device)[rows]

    with noise_source(source):
        yield


@contextmanager
def noise_of_images(seed: int, purpose: str, images: Sequence[int]) -> Iterator[None]:
    """Inside, sample i's numbers are functions of (seed, purpose, images[i]) and of the order of the calls.

    They depend neither on the other samples of a batch, nor on the device, nor on how rays are divided.
    """
    calls = 0

    def source(draw: Draw, shape: tuple[int, ...], device: torch.device, stream: str, first: int) -> Tensor:
        nonlocal calls
        if not stream:
            stream, calls = str(calls), calls + 1
        keys = generator_keys(seed, f"{purpose}/{stream}", images).to(device)
        start, count = first * math.prod(shape[2:]), math.prod(shape[1:])
        if draw is torch.rand:
            numbers = hashed_uniform(keys, start, count)
        else:  # Box and Muller, 1958
            radius, angle = hashed_uniform(keys, 2 * start, 2 * count).view(len(keys), count, 2).unbind(-1)
            numbers = (-2 * torch.log1p(-radius)).sqrt() * (2 * math.pi * angle).cos()
        return numbers.to(torch.get_default_dtype()).view(shape)

    with noise_source(source):
        yield


@contextmanager
def noise_source(source: Source) -> Iterator[None]:
    """Inside, random numbers come from `source`."""
    token = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(token)


def _draw(draw: Draw, shape: tuple[int, ...], device: torch.device, stream: str, first: int) -> Tensor:
    source = _SOURCE.get()
    return draw(shape, device=device) if source is None else source(draw, shape, device, stream, first)
