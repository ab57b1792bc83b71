"""What all commands share: the application, its groups, the kinds of argument that several take."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Train Mimic3D: 3D objects from single posed images, drawn from any camera.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Argument(help="A generator's folder, or models:/NAME@ALIAS, models:/NAME/3.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable.")
]
