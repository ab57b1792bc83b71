"""Random numbers as a function of (seed, purpose, images consumed), so that a resumed run draws the same."""

from __future__ import annotations

import hashlib

import torch


def counter_generator(seed: int, purpose: str, nimg: int = 0) -> torch.Generator:
    """A CPU generator for one purpose at one moment of a run.

    Draws for the global batch come from here and are sliced by rank, so they do not depend on the number of
    workers.
    """
    return torch.Generator().manual_seed(_key(seed, purpose, nimg))


def seed_everything(seed: int, purpose: str, nimg: int = 0) -> None:
    """Seeds PyTorch's global generators, from which noise inputs and ray jitter are drawn."""
    torch.manual_seed(_key(seed, purpose, nimg))


def _key(seed: int, purpose: str, nimg: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{nimg}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
