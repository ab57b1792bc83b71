"""Random numbers as functions of a seed, a purpose and indices, the same on every worker at any time.

`counter_generator` and `seed_everything` seed PyTorch for one purpose at one number of images consumed.
`words`, `uniform` and `permutation` are NumPy's Philox, keyed by (seed, purpose), with a counter set from the
indices. They use raw 64-bit words only: NumPy promises that those never change between its versions, which it
does not promise of `Generator`. The order of training uses them in loader processes, which start faster
without PyTorch: it is imported where a function needs it. `hashed_uniform` makes tensors on any device.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def counter_generator(seed: int, purpose: str, nimg: int = 0) -> torch.Generator:
    """A CPU generator for one purpose at one number of images consumed.

    Random numbers for the global batch are drawn from it and sliced by rank, so that they do not depend on
    the number of workers.
    """
    import torch

    return torch.Generator().manual_seed(_key(seed, purpose, nimg))


def seed_everything(seed: int, purpose: str, nimg: int = 0) -> None:
    """Seeds PyTorch's global generators, from which noise inputs and ray jitter are drawn."""
    import torch

    torch.manual_seed(_key(seed, purpose, nimg))


def words(seed: int, purpose: str, *indices: int, size: int) -> np.ndarray:
    """(size,) uniform uint64 numbers; `indices` are at most three non-negative integers."""
    counter = np.zeros(4, dtype=np.uint64)
    counter[1 : 1 + len(indices)] = indices
    key = np.array([seed % 2**64, zlib.crc32(purpose.encode())], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(size)


def uniform(seed: int, purpose: str, *indices: int, size: int) -> np.ndarray:
    """(size,) uniform float64 numbers in [0, 1)."""
    return (words(seed, purpose, *indices, size=size) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, purpose: str, *indices: int, size: int) -> np.ndarray:
    """(size,) int64: the numbers 0 … size-1 in random order."""
    return np.argsort(words(seed, purpose, *indices, size=size), kind="stable")


def hashed_uniform(keys: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """(N, count) float64, uniform in [0, 1): element `first` + j of the sequence of each key (SplitMix64).

    A number depends on its key and its position alone: not on the device, nor on how many are computed at a
    time.

    Args:
        keys: (N,) int64, as `generator_keys` makes them.
        first: position of the first number in the sequences.
    """
    import torch

    position = torch.arange(first, first + count, device=keys.device)
    bits = _mixed(keys[:, None] + position * _SPLITMIX_STEP)
    return (bits >> 11 & 2**53 - 1).double() * 2.0**-53


def generator_keys(seed: int, purpose: str, indices: Sequence[int]) -> torch.Tensor:
    """(N,) int64 keys for `hashed_uniform`, one for each index."""
    import torch

    return torch.tensor([_key(seed, purpose, index) for index in indices])


# SplitMix64 (Steele et al., 2014), whose constants are written as signed numbers.
_SPLITMIX_STEP = 0x9E3779B97F4A7C15 - 2**64


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function on int64, whose products wrap around."""
    x = (x ^ (x >> 30 & 2**34 - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ (x >> 27 & 2**37 - 1)) * (0x94D049BB133111EB - 2**64)
    return x ^ (x >> 31 & 2**33 - 1)


def _key(seed: int, purpose: str, nimg: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{nimg}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
