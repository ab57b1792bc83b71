"""A batch in several parts whose gradients add up to those of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mimic3d.config import ConfigError
from mimic3d.networks.discriminators import STD_GROUP

_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}
_DRAWS = {torch.rand, torch.randn}


def parts_of(local_batch: int, count: int) -> list[slice]:
    """The rows of each of `count` parts of a rank's batch: every `count`-th, from the part's own number on.

    Minibatch standard deviation is taken over samples that stand local_batch / group apart, so these parts
    hold its groups whole.

    Raises:
        ConfigError: a part would hold a piece of a group.
    """
    group = min(STD_GROUP, local_batch)
    if local_batch % (count * group):
        raise ConfigError(
            f"schedule.accumulate is {count}, but must divide each worker's {local_batch} images into parts "
            f"of a multiple of {group}, the group of the discriminators' minibatch statistics"
        )
    return [slice(first, None, count) for first in range(count)]


class _RowsOfTheWhole(TorchFunctionMode):
    """Random numbers for some rows of a batch are those that the whole batch would have drawn for them."""

    def __init__(self, rows: slice, local_batch: int) -> None:
        super().__init__()
        self.rows, self.local_batch = rows, local_batch

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _LIKE:
            kwargs = {"device": args[0].device, "dtype": args[0].dtype} | kwargs
            return self._draw(_LIKE[function], tuple(args[0].shape), kwargs)
        if function in _DRAWS:
            shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            return self._draw(function, tuple(shape), kwargs)
        return function(*args, **kwargs)

    def _draw(self, function: Callable[..., Any], shape: tuple[int, ...], kwargs: dict[str, Any]) -> Any:
        assert len(range(*self.rows.indices(self.local_batch))) == shape[0], "what is drawn is by sample"
        return function((self.local_batch, *shape[1:]), **kwargs)[self.rows]


def in_parts(parts: list[slice], local_batch: int, device: torch.device) -> Iterator[slice]:
    """Yields each part's rows; the loop's body then draws what the whole batch would draw for them."""
    if len(parts) == 1:
        yield from parts
        return
    state = torch.get_rng_state()
    device_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    for rows in parts:
        torch.set_rng_state(state)
        if device_state is not None:
            torch.cuda.set_rng_state(device_state, device)
        with _RowsOfTheWhole(rows, local_batch):
            yield rows
