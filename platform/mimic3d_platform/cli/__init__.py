"""The `mimic3d` command. Heavy imports stay inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from mimic3d.config import ConfigError
from mimic3d_platform.cli import cluster, data, evaluation, models, services, sweeps, training
from mimic3d_platform.cli.app import app
from mimic3d_platform.errors import ClusterGoneError, UserError

__all__ = ["app", "cluster", "data", "evaluation", "main", "models", "services", "sweeps", "training"]

# Typer exports only children of the error that it raises for a command line it cannot read.
_UsageError = typer.BadParameter.__base__
_STOPPED = "stopped; run the same command again to go on from where it was"


def main(*command: str) -> None:
    """The entry point: what a user can mend is one line and status 2; nothing is ever a traceback.

    Args:
        command: precedes the arguments of this process; the entry points in `jobs/` are one command each.
    """
    try:
        status = app([*command, *sys.argv[1:]], standalone_mode=False)
    except ClusterGoneError as error:
        _fail(str(error), 2, at_once=True)
    except UserError as error:
        _fail(str(error), 2)
    except _UsageError as error:
        if len(sys.argv) == 1 or type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            sys.exit(2)
        _fail(f"{error.format_message().rstrip('.')}; see `{error.ctx.command_path} --help`", 2)
    except ConfigError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail(_STOPPED, 130)
    except BrokenPipeError:
        os._exit(0)
    except ValueError as error:  # the method's own errors, made for users
        _fail(str(error), 2, error)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error}", 1, error)
    if status == 130:  # Typer turns Ctrl-C into this status.
        _fail(_STOPPED, 130)
    sys.exit(status)


def _fail(message: str, status: int, error: Exception | None = None, at_once: bool = False) -> None:
    line = " ".join(message.split())
    if error is not None:
        line += f" (details: {_write_details(error)})"
    print(f"error: {line}", file=sys.stderr)
    sys.stdout.flush()
    # Ray's and MLflow's threads may still be waiting for a server that is gone.
    os._exit(status) if status != 2 or at_once else sys.exit(status)


def _write_details(error: Exception) -> str:
    from mimic3d_platform.settings import default_home

    path = default_home() / "last-error.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.write_text("".join(traceback.format_exception(error)))
    except OSError as problem:
        return f"not written, {problem}"
    return str(path)
