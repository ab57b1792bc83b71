"""A rank's share of a batch, in parts whose gradients add up to those of the whole batch on one rank."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mimic3d.config import ConfigError
from mimic3d.config.shares import can_share, std_group
from mimic3d.sample_noise import rows_of_batch


class BatchParts:
    """The order in which a rank processes its samples of a batch, and the parts that it splits them into.

    Minibatch standard deviation compares samples that stand `samples / STD_GROUP` apart. The order puts
    consecutive samples of the batch there, so that its groups, like the random numbers of each sample, depend
    neither on the number of ranks nor on that of parts, as long as a rank has a whole group of samples.

    Attributes:
        order: (L,) int64 on `device`, this rank's samples 0 … L-1 in the order in which they are processed.
    """

    def __init__(self, batch: int, rank: int, world_size: int, count: int, device: torch.device) -> None:
        """
        Args:
            batch: samples of all ranks together.
            count: parts of each rank's share.
        Raises:
            ConfigError: a part would hold a piece of a group.
        """
        local = batch // world_size
        group = std_group(local)
        if not can_share(batch, world_size, count):
            raise ConfigError(
                f"schedule.accumulate is {count}, but must divide each worker's {local} images into parts "
                f"of a multiple of {group}, the group of the discriminators' minibatch statistics"
            )
        self.count, self._batch, self._device = count, batch, device
        order = _grouped(local, group)
        self.order = order.to(device)
        self._parts = [slice(first, None, count) for first in range(count)]
        # Where one rank would process each sample of the batch.
        places = torch.empty(batch, dtype=torch.int64)
        places[_grouped(batch, group)] = torch.arange(batch)
        mine = places[rank * local : (rank + 1) * local][order]
        self._rows = [mine[part].to(device) for part in self._parts]

    def __iter__(self) -> Iterator[slice]:
        """Each part's rows of what is in `order`; the loop's body gets these samples' random numbers."""
        if len(self.order) == self._batch and self.count == 1:
            yield self._parts[0]
            return
        state = _rng_state(self._device) if self.count > 1 else None
        for part, rows in zip(self._parts, self._rows, strict=True):
            if state is not None:
                _set_rng_state(self._device, state)
            with rows_of_batch(rows, self._batch):
                yield part


def _rng_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The states of PyTorch's generators, that of the CPU and that of a GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_rng_state(device: torch.device, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    on_cpu, on_gpu = state
    torch.set_rng_state(on_cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu, device)


def _grouped(samples: int, group: int) -> torch.Tensor:
    """(samples,) numbers 0, 1, …, ordered so that `group` consecutive ones stand samples / group apart."""
    return torch.arange(samples).view(-1, group).t().flatten()
