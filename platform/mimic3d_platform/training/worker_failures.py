"""Decides what happens when a worker fails.

Ray Train ends all workers when one fails, and starts a new group that resumes from the last checkpoint
(`resume`). Two things end a run instead: an error that every further attempt would meet too (`FinalError`),
and a number of attempts in a row that begin at the same image (`run_state.FailureCount`).
"""

from __future__ import annotations

import torch

from mimic3d.config import ConfigError
from mimic3d_platform.errors import UserError

# What gloo, NCCL and sockets say to the workers that are left when one has died.
_LOST_CONNECTION = ("connection closed by peer", "connection reset", "gloo", "nccl", "socket")


class FinalError(UserError):
    """An error that another attempt of the same workers would meet again, until the user acts."""


class WorkerTerminated(RuntimeError):
    """A worker received SIGTERM; the run is stored, and new workers resume it."""


def final_error(error: BaseException, world_size: int) -> FinalError | None:
    """`error` as a `FinalError` if another attempt would meet it again, else None."""
    if isinstance(error, FinalError):
        return error
    if isinstance(error, ConfigError):
        return FinalError(str(error))
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        first = (str(error).splitlines() or ["of the CPU"])[0][:120]
        return FinalError(
            f"a worker ran out of memory ({first}): raise schedule.accumulate, use more workers than "
            f"{world_size}, or a smaller schedule.batch"
        )
    return None


def cause_of(error: BaseException) -> str:
    """A one-line description of an error that a retry may avoid."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0][:300] if lines else type(error).__name__
    if not isinstance(error, UserError) and any(words in line.lower() for words in _LOST_CONNECTION):
        return "another worker died, as it does when memory runs out"
    return line
