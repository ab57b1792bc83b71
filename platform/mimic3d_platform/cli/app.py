"""What all commands share: the application, its groups, the kinds of argument that several take."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core

# The parts of `mimic3d --help`, in the order in which one meets them.
PANELS = {
    "Services": ("up", "down", "status", "doctor", "weights"),
    "Data": ("data",),
    "Training": ("demo", "train", "evaluate", "sweep"),
    "Clusters": ("submit", "jobs"),
    "Models": ("pull", "register", "import-checkpoint", "render", "mesh"),
}
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}


class _InPanels(typer.core.TyperGroup):
    """Lists the commands panel by panel; one that is in none comes last."""

    def list_commands(self, context: Any) -> list[str]:
        order = list(_PANEL_OF)
        return sorted(
            super().list_commands(context), key=lambda it: (it not in order, [*order, it].index(it))
        )

    def get_command(self, context: Any, name: str) -> Any:
        command = super().get_command(context, name)
        if command is not None:
            command.rich_help_panel = _PANEL_OF.get(name)
        return command


app = typer.Typer(
    cls=_InPanels,
    help="Train Mimic3D: 3D objects from single posed images, drawn from any camera.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str, typer.Argument(help="A generator's folder, models:/NAME@ALIAS, models:/NAME/3, or builtin:cars.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable.")
]
