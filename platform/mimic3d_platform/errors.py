"""The error that reaches a user, and the ways to make one of another error."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Something the user can mend: one line that says what was wrong, where, and what to do.

    The command line prints it as `error: …` and exits with status 2; nothing else is shown.
    """


class ClusterGoneError(UserError):
    """The Ray cluster that this program had joined is no longer there; Ray's own clean-up would hang."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Raises a `ValueError` of the block, as `mimic3d` raises for bad input, as a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def one_line(error: BaseException, limit: int | None = None) -> str:
    """The message of an error without line breaks, cut to `limit` characters; its type if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__
