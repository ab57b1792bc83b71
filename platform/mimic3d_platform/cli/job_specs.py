"""What the user asked for becomes work that a cluster can do: resolved here, checked here, self-contained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mimic3d.config import fingerprint, to_dict
from mimic3d_platform.cluster.jobs import Work
from mimic3d_platform.cluster.resources import parse_workers
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.registry import check_registration
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.training import runs as run_names
from mimic3d_platform.training.resolve_config import resolve_config

CONFIG, SWEEP = "config.yaml", "sweep.yaml"
# A config or a sweep file; what is larger is data, and belongs in object storage.
LARGEST_FILE = 1_000_000


def training_work(
    recipe: str,
    data: str | None,
    assignments: list[str],
    name: str | None,
    workers: str | None,
    runs: str | None,
    register: str | None,
    alias: str | None,
) -> Work:
    """`mimic3d train` for a cluster: the config travels whole, resolved from the recipe and overrides here.

    The run's name, its config and the folder of runs make it the same work, as they make it the same run.

    Raises:
        UserError: anything that `mimic3d train` would refuse, or a place that the cluster cannot have.
    """
    config = resolve_config(recipe, data, assignments)
    check_registration(register, alias)
    fewest_workers(workers)
    name = run_names.check_name(name or config.recipe)
    require_shared("data set", config.data.uri)
    if runs:
        require_shared("folder of runs", runs)
    options = {"--name": name, "--workers": workers, "--runs": runs, "--register": register, "--alias": alias}
    given = [part for option, value in options.items() if value is not None for part in (option, str(value))]
    return Work(
        kind="train",
        name=name,
        arguments=(CONFIG, *given),
        files={CONFIG: yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)},
        identity=f"{fingerprint(config)} {runs or DEFAULT_RUNS_URI}",
    )


def sweep_work(
    file: Path, data: str | None, assignments: list[str], name: str | None, runs: str | None
) -> Work:
    """`mimic3d sweep` for a cluster: the sweep travels whole, with the config that its file names.

    Raises:
        UserError: anything that `mimic3d sweep` would refuse, or a place that the cluster cannot have.
    """
    from mimic3d_platform.tuning.schema import OWN, SHARED
    from mimic3d_platform.tuning.sweep_file import load_sweep, sweep_to_yaml

    sweep = load_sweep(file, data, assignments)
    name = run_names.check_name(name or file.stem)
    require_shared("data set", sweep.config["data"]["uri"])
    if sweep.stage1 not in (SHARED, OWN) and not sweep.stage1.startswith("models:/"):
        require_shared("stage 1", sweep.stage1)
    if runs:
        require_shared("folder of runs", runs)
    text = sweep_to_yaml(sweep)
    return Work(
        kind="sweep",
        name=name,
        arguments=(SWEEP, "--name", name, *(("--runs", runs) if runs else ())),
        files={SWEEP: text},
        identity=f"{text} {runs or DEFAULT_RUNS_URI}",
    )


def fewest_workers(workers: str | None) -> int:
    """How many workers a run cannot do without: the least of a range; 1 where it takes what there is.

    Raises:
        UserError: it is no number and no range, or an empty one.
    """
    count = parse_workers(workers)
    least, most = count if isinstance(count, tuple) else (count, count)
    if least is not None and not 1 <= least <= most:
        raise UserError(f"--workers {workers}: give a number from 1, or LEAST:MOST, such as 4 or 2:8")
    return least or 1


def command_work(kind: str, arguments: list[str]) -> Work:
    """Any other group of commands for a cluster, its command line as it is, with the small files it names.

    Args:
        kind: the command, such as `data`, with an entry point in `jobs/`.
        arguments: what follows it, such as `render s3://…`.
    Raises:
        UserError: a folder or a large file of this machine is named.
        click's usage errors: the command would not take these arguments.
    """
    parse(kind, arguments)
    files: dict[str, str] = {}
    sent: list[str] = []
    for argument in arguments:
        option, separator, value = (
            argument.partition("=") if argument.startswith("--") else ("", "", argument)
        )
        path = Path(value)
        if "://" not in value and not path.is_absolute() and path.exists() and value:
            value = _file(path, files)
        sent.append(option + separator + value)
    readable = next((argument for argument in arguments if not argument.startswith("-")), kind)
    name = sent[sent.index("--name") + 1] if "--name" in sent[:-1] else Path(readable).stem
    return Work(kind, name, tuple(sent), files)


def parse(kind: str, arguments: list[str]) -> None:
    """Reads a command line as the command itself would, and runs nothing.

    Raises:
        UserError: there is no such command.
        click's usage errors: an option or an argument is wrong or missing.
    """
    import typer.main

    from mimic3d_platform.cli.app import app

    command: Any = typer.main.get_command(app)
    context: Any = None
    names = [kind, *arguments]
    name = "mimic3d"
    while hasattr(command, "get_command"):
        context = command.context_class(command, parent=context, info_name=name)
        if not names:
            raise UserError(f"say what to do: see `{context.command_path} --help`")
        name, *names = names
        found = command.get_command(context, name)
        if found is None:
            raise UserError(f"no such command {name!r}: see `{context.command_path} --help`")
        command = found
    command.make_context(name, names, parent=context)


def _file(path: Path, files: dict[str, str]) -> str:
    """The name under which a small text file travels."""
    if path.is_dir() or path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} is on this machine only: put it into object storage, and name it s3://…")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{path} cannot be read as text: put it into object storage, name it s3://…"
        ) from None
    if files.get(path.name, text) != text:
        raise UserError(f"two files are named {path.name}: rename one")
    files[path.name] = text
    return path.name


def require_shared(what: str, place: str) -> None:
    """Refuses a path that means another place on the cluster than it does here.

    Raises:
        UserError: it is relative.
    """
    if "://" not in place and not place.startswith("/"):
        raise UserError(
            f"the {what} {place} is a path on this machine: name one that the cluster has, s3://… or absolute"
        )
