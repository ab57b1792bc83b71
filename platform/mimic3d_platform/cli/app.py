"""The Typer application, its help panels, and the arguments that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import typer.core

# The panels of `mimic3d --help` and the commands in each, in the order in which help lists them.
PANELS = {
    "Services": ("up", "down", "status", "env", "doctor", "weights"),
    "Data": ("data",),
    "Training": ("demo", "recipes", "train", "runs", "evaluate", "compare", "sweep"),
    "Clusters": ("submit", "jobs"),
    "Models": ("pull", "register", "models", "import-checkpoint", "render", "mesh", "view"),
}
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}


class _PanelGroup(typer.core.TyperGroup):
    """A command group whose help lists commands in the order of `PANELS`; commands in no panel come last."""

    def list_commands(self, context: Any) -> list[str]:  # Typer's base class of contexts is private.
        order = list(_PANEL_OF)
        return sorted(
            super().list_commands(context), key=lambda name: (name not in order, [*order, name].index(name))
        )

    def get_command(self, context: Any, name: str) -> Any:
        command = super().get_command(context, name)
        if isinstance(command, typer.core.TyperCommand | typer.core.TyperGroup):
            command.rich_help_panel = _PANEL_OF.get(name)
        return command


app = typer.Typer(
    cls=_PanelGroup,
    help="Train Mimic3D, a 3D-aware GAN: 3D objects from single posed images, rendered from any camera.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mimic3d {version('mimic3d')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


Model = Annotated[
    str,
    typer.Argument(
        help="A generator's folder (s3://… or a path), models:/NAME@ALIAS, models:/NAME/VERSION, or "
        "builtin:cars."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a config key; repeatable. rendering=auto: near, far, box and camera of the data set.",
    ),
]
Recipe = Annotated[str, typer.Argument(help="A recipe's name, or a config file (.yaml): s3://… or a path.")]
SweepFile = Annotated[
    str, typer.Argument(help="The sweep file, such as sweeps/imitation.yaml: s3://… or a path.")
]
Data = Annotated[str | None, typer.Option(help="The data set's folder: s3://… or a path.")]
Runs = Annotated[
    str | None, typer.Option(help="The folder of all runs: s3://… or a path; s3://mimic3d/runs by default.")
]
RunName = Annotated[str | None, typer.Option(help="The run's name; by default the recipe's name.")]
SweepName = Annotated[str | None, typer.Option(help="The sweep's name; by default the file's name.")]
Workers = Annotated[
    str | None,
    typer.Option(help="Ray Train workers: a number, or LEAST:MOST; by default one a GPU, else one a CPU."),
]
Register = Annotated[str | None, typer.Option(help="Register the generator in MLflow under this model name.")]
Alias = Annotated[
    str | None,
    typer.Option(help="Give the version this alias, if it is better than the version that has it."),
]
Extend = Annotated[
    bool,
    typer.Option("--extend", help="Continue an existing run or sweep with a greater length or budget."),
]
