"""The error that reaches a user."""


class UserError(ValueError):
    """Something the user can mend: one line that says what was wrong, where, and what to do.

    The command line prints it as `error: …` and exits with status 2; nothing else is shown.
    """


class ClusterGoneError(UserError):
    """The Ray cluster that this program had joined is no longer there; Ray's own clean-up would hang."""
