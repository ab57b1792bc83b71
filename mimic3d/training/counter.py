"""Random numbers that depend on nothing but a seed, a purpose and indices.

A Philox generator is keyed by (seed, purpose) and its counter is set from the indices, so any draw can be
made anywhere, at any time and by any number of workers. Only raw 64-bit words are used: NumPy promises that
those never change between its versions, which it does not promise of `Generator`.
"""

from __future__ import annotations

import zlib

import numpy as np


def words(seed: int, purpose: str, *indices: int, size: int) -> np.ndarray:
    """(size,) uint64, uniform; `indices` are at most three integers of 0 or more."""
    counter = np.zeros(4, dtype=np.uint64)
    counter[1 : 1 + len(indices)] = indices
    key = np.array([seed % 2**64, zlib.crc32(purpose.encode())], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(size)


def uniform(seed: int, purpose: str, *indices: int, size: int) -> np.ndarray:
    """(size,) float64 in [0, 1)."""
    return (words(seed, purpose, *indices, size=size) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, purpose: str, *indices: int, size: int) -> np.ndarray:
    """(size,) int64: the numbers 0 … size-1 in random order."""
    return np.argsort(words(seed, purpose, *indices, size=size), kind="stable")
