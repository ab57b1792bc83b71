"""Builds the jobs that `mimic3d submit` sends to a Ray cluster.

Arguments are checked and configs resolved here, before anything is sent: a mistake is reported at once, and a
job needs no file of this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from typer.core import TyperGroup

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import fingerprint, to_dict
from mimic3d_platform.cluster.jobs import JobSpec
from mimic3d_platform.cluster.resources import fewest_workers
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.registry import check_registration
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.training.config_from_command import resolve_config
from mimic3d_platform.training.run_identity import SWEEP, check_name

# Bytes of the largest file that is sent: configs and sweep files are smaller, data belongs in object storage.
LARGEST_FILE = 1_000_000


@dataclass(frozen=True)
class TrainingOptions:
    """The arguments of `mimic3d submit train`, as typed."""

    recipe: str
    """A recipe's name, or the path of a config file."""
    data: str | None = None
    overrides: Sequence[str] = ()
    """KEY=VALUE each."""
    name: str | None = None
    workers: str | None = None
    """A number, or LEAST:MOST."""
    runs: str | None = None
    register: str | None = None
    alias: str | None = None
    extend: bool = False


@dataclass(frozen=True)
class SweepOptions:
    """The arguments of `mimic3d submit sweep`, as typed."""

    file: str
    data: str | None = None
    overrides: Sequence[str] = ()
    """KEY=VALUE each."""
    name: str | None = None
    runs: str | None = None
    extend: bool = False


def training_job(options: TrainingOptions) -> JobSpec:
    """Builds the job of a training; it carries the config, resolved from the recipe and the overrides.

    Two trainings with one run name, config and folder of runs are the same job, whatever their workers.

    Raises:
        UserError: `mimic3d train` would refuse the options, or a path is of this machine.
    """
    config = resolve_config(options.recipe, options.data, list(options.overrides))
    check_registration(options.register, options.alias)
    fewest_workers(options.workers)
    name = check_name(options.name or config.recipe)
    _require_shared("data set", config.data.uri)
    _require_shared_start(config.start)
    if options.runs:
        _require_shared("folder of runs", options.runs)
    arguments = [CONFIG, "--name", name]
    for option, value in (
        ("--workers", options.workers),
        ("--runs", options.runs),
        ("--register", options.register),
        ("--alias", options.alias),
    ):
        if value is not None:
            arguments += [option, value]
    if options.extend:
        arguments.append("--extend")
    return JobSpec(
        kind="train",
        run=name,
        arguments=tuple(arguments),
        files={CONFIG: yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)},
        identity=f"{fingerprint(config)} {options.runs or DEFAULT_RUNS_URI}",
    )


def sweep_job(options: SweepOptions) -> JobSpec:
    """Builds the job of a sweep; it carries the sweep file with the config that the file names.

    Raises:
        UserError: `mimic3d sweep` would refuse the options, or a path is of this machine.
    """
    from mimic3d_platform.tuning.schema import OWN, SHARED
    from mimic3d_platform.tuning.sweep_file import load_sweep, sweep_to_yaml

    sweep = load_sweep(options.file, options.data, list(options.overrides))
    name = check_name(options.name or Path(options.file).stem)
    _require_shared("data set", sweep.base.data.uri)
    _require_shared_start(sweep.base.start)
    if sweep.stage1 not in (SHARED, OWN) and not sweep.stage1.startswith("models:/"):
        _require_shared("stage 1", sweep.stage1)
    if options.runs:
        _require_shared("folder of runs", options.runs)
    text = sweep_to_yaml(sweep)
    arguments = [SWEEP, "--name", name]
    if options.runs:
        arguments += ["--runs", options.runs]
    if options.extend:
        arguments.append("--extend")
    return JobSpec(
        kind="sweep",
        run=name,
        arguments=tuple(arguments),
        files={SWEEP: text},
        identity=f"{text} {options.runs or DEFAULT_RUNS_URI}",
    )


def command_job(root: TyperGroup, kind: str, arguments: Sequence[str]) -> JobSpec:
    """Builds the job of any other command; it carries the small files that the command line names.

    Args:
        root: the `mimic3d` command, which checks the arguments.
        kind: the command, such as `data`, with an entry point in `jobs/`.
        arguments: of the command, such as `render s3://…`.
    Raises:
        UserError: there is no such command, or a folder or a large file of this machine is named.
        typer.TyperException: the command does not accept these arguments.
    """
    check_arguments(root, [kind, *arguments])
    files: dict[str, str] = {}
    sent: list[str] = []
    for argument in arguments:
        option, separator, value = (
            argument.partition("=") if argument.startswith("--") else ("", "", argument)
        )
        path = Path(value)
        if "://" not in value and not path.is_absolute() and path.exists() and value:
            value = _add_file(path, files)
        sent.append(option + separator + value)
    first_positional = next((argument for argument in arguments if not argument.startswith("-")), kind)
    run = sent[sent.index("--name") + 1] if "--name" in sent[:-1] else Path(first_positional).stem
    return JobSpec(kind, run, tuple(sent), files)


def check_arguments(root: TyperGroup, arguments: Sequence[str]) -> None:
    """Parses a command line as the command itself would, and runs nothing.

    Raises:
        UserError: there is no such command.
        typer.TyperException: an option or an argument is wrong or missing.
    """
    group, context = root, root.context_class(root, info_name="mimic3d")
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        command = group.get_command(context, name)
        if command is None:
            raise UserError(f"no such command {name!r}: see `{context.command_path} --help`")
        if not isinstance(command, TyperGroup):
            command.make_context(name, rest, parent=context)
            return
        group, context = command, command.context_class(command, parent=context, info_name=name)
    raise UserError(f"a subcommand is missing: see `{context.command_path} --help`")


def _add_file(path: Path, files: dict[str, str]) -> str:
    """Adds a small text file to `files`; returns its name there."""
    if path.is_dir() or path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} is on this machine only: put it into object storage, and name it s3://…")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{path} cannot be read as text: put it into object storage, and name it s3://…"
        ) from None
    if files.get(path.name, text) != text:
        raise UserError(f"two files are named {path.name}: rename one")
    files[path.name] = text
    return path.name


def _require_shared_start(start: str) -> None:
    if start and not start.startswith(("models:/", "builtin:")):
        _require_shared("start", start)


def _require_shared(what: str, place: str) -> None:
    """Raises `UserError` for a relative path, which means another place on the cluster than here."""
    if "://" not in place and not place.startswith("/"):
        raise UserError(
            f"the {what} {place} is a relative path, which the cluster does not have: name s3://… or an "
            "absolute path on the cluster"
        )
