"""The retry policy: transient errors only, within the patience, and the user may be told of each."""

import time

import pytest

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage import StorageError


class Flaky:
    """Fails with each of `errors` in turn, then returns how often it was called."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


def away(number: int = 0) -> StorageError:
    return StorageError(f"nothing answers ({number})", transient=True)


def test_transient_errors_are_retried_and_each_is_noted() -> None:
    noted: list[str] = []
    action = Flaky(away(1), away(2))
    assert storage.retry(action, patience_s=30, on_retry=lambda error: noted.append(str(error))) == 3
    assert noted == ["nothing answers (1)", "nothing answers (2)"]


@pytest.mark.parametrize(
    "error", [StorageError("wrong credentials"), UserError("another"), ValueError("no number")]
)
def test_every_other_error_is_raised_at_once(error: Exception) -> None:
    action = Flaky(error)
    with pytest.raises(type(error)) as caught:
        storage.retry(action, patience_s=30)
    assert caught.value is error and action.calls == 1


def test_the_last_error_is_raised_when_the_patience_ends() -> None:
    action = Flaky(*map(away, range(100)))
    began = time.monotonic()
    with pytest.raises(StorageError, match="nothing answers") as caught:
        storage.retry(action, patience_s=1.0)
    assert caught.value.transient and 1.0 <= time.monotonic() - began < 2.0
    # Pauses of a quarter, a half and the rest of a second: they grow, and the last attempt is at the end.
    assert 3 <= action.calls <= 5


def test_no_patience_is_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    action = Flaky(away())
    with pytest.raises(StorageError):
        storage.retry(action, patience_s=0)
    assert action.calls == 1
    monkeypatch.setenv("MIMIC3D_PATIENCE_S", "0")
    action = Flaky(away())
    with pytest.raises(StorageError):
        storage.retry(action)
    assert action.calls == 1


def test_an_access_is_retried_and_its_errors_name_verb_and_place() -> None:
    action = Flaky(ConnectionResetError("reset by peer"))
    assert storage.access("s3://bucket/key", "read", action, patience_s=30) == 2
    with pytest.raises(StorageError, match="cannot read s3://bucket/key: nothing answers at"):
        storage.access("s3://bucket/key", "read", Flaky(TimeoutError()), patience_s=0)
