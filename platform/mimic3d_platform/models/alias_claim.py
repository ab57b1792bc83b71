"""The claim on an alias of a registered model: of concurrent promotions, one at a time has it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator

from mimic3d_platform.errors import UserError
from mimic3d_platform.models.registry import suppressed
from mimic3d_platform.tracking.server import client, conflict_suppressed, tracking_errors

_TAG = "mimic3d.promoting."
# Two processes that claim an alias at once read their claims again after this time, longer than a request.
SETTLE_S = 1.0
_WAIT_S = 60.0
_STALE_S = 600.0


@contextlib.contextmanager
def claimed_alias(name: str, alias: str) -> Iterator[Callable[[], None]]:
    """Holds the claim on an alias, a tag of the model, during the block; waits while another has it.

    MLflow has no operation that sets a tag only if it is not set. So each process writes its own claim, waits
    longer than a request takes, and has the alias if its claim is still there (Fischer's algorithm).

    Yields:
        A function to call just before the alias is set: it raises a `UserError` if the claim was lost since
        a request took longer than that, or since the block took so long that the claim passed for abandoned.
    Raises:
        UserError: another process has held the claim for a minute.
    """
    mlflow_client, key, token = client(), f"{_TAG}{alias}", secrets.token_hex(8)

    def current() -> str | None:
        return mlflow_client.get_registered_model(name).tags.get(key)

    def is_own(claim: str | None) -> bool:
        return claim is not None and claim.startswith(token)

    def check() -> None:
        with tracking_errors(f"promote a version of {name!r} in"):
            if not is_own(current()):
                raise UserError(
                    f"another promotion to {alias!r} of {name!r} came in between: run the command again"
                )

    try:
        with tracking_errors(f"promote a version of {name!r} in"):
            deadline = time.monotonic() + _WAIT_S
            while True:
                held = current()
                if held is None or time.time() - _time_of(held) > _STALE_S:
                    with conflict_suppressed():  # Then the claim is another's, and is found below.
                        mlflow_client.set_registered_model_tag(name, key, f"{token} {time.time():.0f}")
                    time.sleep(SETTLE_S)
                    if is_own(current()):
                        break
                elif time.monotonic() > deadline:
                    raise UserError(
                        f"another promotion to {alias!r} of {name!r} is under way: wait for it, or delete "
                        f"the model's tag {key} in MLflow"
                    )
                else:
                    time.sleep(SETTLE_S)
        yield check
    finally:
        with (
            contextlib.suppress(UserError),
            tracking_errors("promote in"),
            suppressed("RESOURCE_DOES_NOT_EXIST"),
        ):
            if is_own(current()):
                mlflow_client.delete_registered_model_tag(name, key)


def _time_of(claim: str) -> float:
    """When a claim was written, in seconds since 1970; 0 for one that is damaged."""
    stamp = claim.rpartition(" ")[2]
    return float(stamp) if stamp.isdigit() else 0.0
