"""`mimic3d env`: the addresses and keys of the services, for programs other than mimic3d."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from mimic3d_platform.cli.app import app
from mimic3d_platform.errors import UserError

_SERVICES = ("AWS_", "MLFLOW_", "RAY_")
_PLAIN = re.compile(r"[\w@%+=:,./~-]*")


@app.command()
def env(
    form: Annotated[str, typer.Option("--format", help="shell, dotenv or json.")] = "shell",
) -> None:
    """Print the addresses and keys of the services, for boto3, DuckDB, notebooks and Ray's own commands.

    In a shell: eval "$(mimic3d env)". The output holds secrets.
    """
    if form not in _FORMATS:
        raise UserError(f"--format {form}: give {', '.join(_FORMATS)}")
    from mimic3d_platform import local
    from mimic3d_platform.settings import get_settings, stack_file
    from mimic3d_platform.storage.s3 import DEFAULT_REGION

    settings = get_settings()
    variables = {k: v for k, v in settings.export().items() if k.startswith(_SERVICES)}
    if not variables:
        raise UserError("no services are known: run `mimic3d up`, or set their variables (docs/clusters.md)")
    if any(name.startswith("AWS_") for name in variables):
        # The only name that boto3 reads; other clients ask for a region even where the store has none.
        variables["AWS_DEFAULT_REGION"] = settings.aws_region or DEFAULT_REGION
    if stack_file(settings.home).exists() and not local.status().running:
        typer.echo("note: the services of `mimic3d up` are not running", err=True)
    typer.echo(_FORMATS[form](variables))


def _shell(variables: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def _dotenv(variables: Mapping[str, str]) -> str:
    """Lines that Docker, which knows no quotes, reads too, as long as the values need none."""
    return "\n".join(
        f"{name}={value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)}"
        for name, value in variables.items()
    )


def _json(variables: Mapping[str, str]) -> str:
    return json.dumps(dict(variables), indent=2, ensure_ascii=False)


_FORMATS: dict[str, Callable[[Mapping[str, str]], str]] = {
    "shell": _shell,
    "dotenv": _dotenv,
    "json": _json,
}
