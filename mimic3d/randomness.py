"""Random numbers as functions of a seed, a purpose and indices, the same on every worker at any time.

`counter_generator` and `seed_everything` seed PyTorch for one purpose at one number of images consumed.
`words`, `uniform` and `permutation` are NumPy's Philox, keyed by (seed, purpose), with a counter set from the
indices. They use raw 64-bit words only: NumPy promises that those never change between its versions, which it
does not promise of `Generator`. The order of training uses them in loader processes, which start faster
without PyTorch: it is imported where a function needs it.
"""

from __future__ import annotations

import hashlib
import zlib
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


def _key(seed: int, purpose: str, nimg: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{nimg}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
