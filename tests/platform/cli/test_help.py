"""What `mimic3d --help` shows: every command, in the panel of its subject, services first."""

import re

import typer.main
from typer.testing import CliRunner

from mimic3d_platform.cli import app
from mimic3d_platform.cli.app import PANELS


def test_help_shows_the_panels_in_order() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    found = re.findall(r"^╭─ (\w+) ─", shown, re.M)
    assert [panel for panel in found if panel != "Options"] == list(PANELS)


def test_every_command_is_in_one_panel() -> None:
    placed = [name for names in PANELS.values() for name in names]
    assert len(placed) == len(set(placed))
    group = typer.main.get_command(app)
    commands = group.list_commands(group.context_class(group))
    assert set(commands) <= set(placed)
