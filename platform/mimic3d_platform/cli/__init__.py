"""The `mimic3d` command.

Commands import Ray, MLflow and PyTorch when they run, so that `mimic3d --help` answers within half a second.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import typer

from mimic3d_platform.cli import (
    cluster,
    data,
    env,
    evaluation,
    models,
    registry,
    runs,
    services,
    sweeps,
    training,
    viewer,
)
from mimic3d_platform.cli.app import app
from mimic3d_platform.errors import ClusterGoneError, UserError

__all__ = [
    "app",
    "cluster",
    "data",
    "env",
    "evaluation",
    "main",
    "models",
    "registry",
    "runs",
    "services",
    "sweeps",
    "training",
    "viewer",
]

_STOPPED = "stopped; run the same command again to resume"


def main(*command: str) -> None:
    """Runs the command line; prints an error as one line, never a traceback.

    The exit status is 2 for an error that the user can correct, 1 for an unexpected one, 130 after Ctrl-C.

    Args:
        command: precedes the arguments of this process; the scripts in `jobs/` are one command each.
    """
    try:
        status = app([*command, *sys.argv[1:]], standalone_mode=False)
    except ClusterGoneError as error:
        _fail(str(error), 2, at_once=True)
    except UserError as error:
        _fail(str(error), 2)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if len(sys.argv) == 1 or type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            sys.exit(2)
        hint = f"; see `{context.command_path} --help`" if context else ""
        _fail(f"{error.format_message().rstrip('.')}{hint}", 2)
    except KeyboardInterrupt:
        _fail(_STOPPED, 130)
    except BrokenPipeError:
        os._exit(0)
    except ValueError as error:  # Raised by `mimic3d`, which does not know `UserError`.
        from mimic3d.config import ConfigError

        _fail(str(error), 2, None if isinstance(error, ConfigError) else error)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error}", 1, error)
    if status == 130:  # Typer returns this status after Ctrl-C.
        _fail(_STOPPED, 130)
    sys.exit(status)


def _fail(message: str, status: int, error: Exception | None = None, at_once: bool = False) -> NoReturn:
    """Prints the error and ends the process; `at_once` without waiting for other threads.

    Args:
        error: its traceback is written to a file, which the line names.
    """
    line = " ".join(message.split())
    if error is not None:
        line += f" (details: {_write_details(error)})"
    print(f"error: {line}", file=sys.stderr)
    sys.stdout.flush()
    # Threads of Ray and MLflow may be waiting for a server that has ended.
    if status != 2 or at_once:
        os._exit(status)
    sys.exit(status)


def _write_details(error: Exception) -> str:
    from mimic3d_platform.settings import default_home

    try:
        path = default_home() / "last-error.txt"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except (OSError, UserError) as problem:
        return f"not written, {problem}"
    return str(path)
