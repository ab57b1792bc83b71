"""The one retry policy: transient `StorageError`s are retried, with growing pauses, for a bounded time.

A command retries for a few seconds (`MIMIC3D_PATIENCE_S`), a training for minutes (`data.patience_s`).
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential
from tenacity.wait import wait_base

from mimic3d_platform.settings import get_settings
from mimic3d_platform.storage.errors import StorageError, translate_errors

log = logging.getLogger(__name__)
Result = TypeVar("Result")

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0


def retry(
    action: Callable[[], Result],
    *,
    patience_s: float | None = None,
    on_retry: Callable[[StorageError], None] | None = None,
) -> Result:
    """The result of `action`, which is called again after each transient `StorageError`.

    Args:
        patience_s: seconds from the first call after which no other is made; the settings' if not given.
        on_retry: called before each pause, with the error; it logs a warning if not given.
    Raises:
        StorageError: not transient, or still raised at the end of the patience.
    """
    bound = get_settings().patience_s if patience_s is None else patience_s

    def before_pause(state: RetryCallState) -> None:
        error = _error_of(state)
        if on_retry is None:
            left = bound - (state.seconds_since_start or 0.0)
            log.warning("%s; trying again for %.0f s", error, left)
        else:
            on_retry(error)

    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, StorageError) and error.transient),
        wait=GrowingPauses(bound),
        stop=stop_after_delay(bound),
        before_sleep=before_pause,
        reraise=True,
    )
    return retrying(action)


def access(
    uri: str | os.PathLike[str],
    verb: str,
    action: Callable[[], Result],
    *,
    patience_s: float | None = None,
) -> Result:
    """The result of `action`, which reads or changes what is at `uri`; `retry` is its policy.

    Args:
        verb: what `action` does, as in the message "cannot {verb} {uri}".
        patience_s: see `retry`.
    Raises:
        StorageError: what pyarrow, botocore or the system raised, in one line.
    """

    def translated() -> Result:
        with translate_errors(uri, verb):
            return action()

    return retry(translated, patience_s=patience_s)


class GrowingPauses(wait_base):
    """Pauses between attempts: each twice the one before, up to `longest_s`; the last ends at `bound_s`.

    A random factor keeps many workers, which meet one fault at one moment, from returning at one moment.
    """

    def __init__(self, bound_s: float = float("inf"), longest_s: float = LONGEST_PAUSE_S) -> None:
        self._bound_s = bound_s
        self._pauses = wait_exponential(multiplier=FIRST_PAUSE_S, max=longest_s)

    def __call__(self, retry_state: RetryCallState) -> float:
        left = self._bound_s - (retry_state.seconds_since_start or 0.0)
        return max(min(self._pauses(retry_state) * random.uniform(0.75, 1.25), left), 0.0)


def _error_of(state: RetryCallState) -> StorageError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, StorageError)
    return error
