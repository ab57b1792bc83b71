"""What the user asked for becomes work that a cluster can do: resolved here, checked here, self-contained."""

from __future__ import annotations

import yaml

from mimic3d.config import fingerprint, to_dict
from mimic3d_platform import runs as run_names
from mimic3d_platform.errors import UserError
from mimic3d_platform.launch import resolve_config
from mimic3d_platform.submission import Work

CONFIG = "config.yaml"


def training_work(
    recipe: str,
    data: str | None,
    assignments: list[str],
    name: str | None,
    workers: int | None,
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
        identity=f"{fingerprint(config)} {runs or run_names.DEFAULT_RUNS_URI}",
    )


def require_shared(what: str, place: str) -> None:
    """Refuses a path that means another place on the cluster than it does here.

    Raises:
        UserError: it is relative.
    """
    if "://" not in place and not place.startswith("/"):
        raise UserError(
            f"the {what} {place} is a path on this machine: name one that the cluster has, s3://… or absolute"
        )
