"""The config that a command line describes: a recipe or a YAML file, a data set, `--set KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.run_identity import read_config_file

_NO_DATA = "no data set is named: give --data s3://…, or make one with `mimic3d data render`"


def resolve_config(recipe: str, data_uri: str | None, assignments: Sequence[str]) -> Config:
    """The config of a recipe's name or a YAML file, with `data.uri` and the overrides of `--set`.

    Args:
        assignments: KEY=VALUE, such as `imitation.lpips_weight=0.5`; see `assign`.
    Raises:
        UserError: no data set is named, the file cannot be read, or an assignment has no `=`.
        ConfigError: unknown recipe or key, wrong type, impossible combination.
    """
    is_file = Path(recipe).suffix in (".yaml", ".yml")
    config = _read_config(recipe) if is_file else get_recipe(recipe)
    config = assign(config, assignments, data_uri)
    config.require_start()
    if not config.data.uri:
        raise UserError(_NO_DATA)
    return config


def assign(config: Config, assignments: Sequence[str], data_uri: str | None = None) -> Config:
    """The config with `data.uri`, if it is given, and the assignments of `--set`.

    `rendering=auto` takes near, far, the box and the camera of pictures from the data set; other assignments
    come after it.

    Raises:
        UserError: an assignment has no `=`, or the cameras of the data set cannot be read.
        ConfigError: unknown key, wrong type, impossible combination.
    """
    changes = parse_assignments(assignments, data_uri)
    automatic = changes.pop("rendering", None)
    if automatic not in (None, "auto"):
        raise UserError(
            f"--set rendering={automatic}: write rendering=auto, or a key such as rendering.near=1.1"
        )
    if automatic:
        from mimic3d_platform.training.scene_check import fit_to_data

        config = override(config, {k: v for k, v in changes.items() if k == "data.uri"})
        if not config.data.uri:
            raise UserError(_NO_DATA)
        config = fit_to_data(config)
    return override(config, changes)


def parse_assignments(assignments: Sequence[str], data_uri: str | None = None) -> dict[str, str]:
    """KEY=VALUE assignments as overrides by dotted key, with `data.uri` if it is given.

    Raises:
        UserError: an assignment has no `=`.
    """
    changes: dict[str, str] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise UserError(f"--set {assignment}: write KEY=VALUE, such as imitation.lpips_weight=0.5")
        changes[key.strip()] = value.strip()
    return changes if data_uri is None else changes | {"data.uri": data_uri}


def _read_config(uri: str) -> Config:
    if not storage.exists(uri):
        raise UserError(f"there is no config file {uri}: check the path, or name a recipe")
    return read_config_file(uri)
