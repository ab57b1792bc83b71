"""A run's place in storage and its identity: a name stands for one config, for ever."""

from __future__ import annotations

import re

from mimic3d.checkpoints.folder import config_from_yaml, config_to_yaml
from mimic3d.config import Config, flatten, to_dict
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError

DEFAULT_RUNS_URI = "s3://mimic3d/runs"
CONFIG = "config.yaml"
_SHOWN_DIFFERENCES = 4


def check_name(name: str) -> str:
    """`name`, if it can be a folder, an object's key and an MLflow run's name at once."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"run name {name!r}: use up to 100 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def claim(runs_uri: str, name: str, config: Config) -> bool:
    """Takes the run's name for this config.

    Returns:
        whether the run was there already and goes on.
    Raises:
        UserError: the name belongs to another config; the first differences are shown.
    """
    place = storage.join(runs_uri, check_name(name), CONFIG)
    if not storage.exists(place):
        storage.ensure_bucket(runs_uri)
        storage.write_bytes(place, config_to_yaml(config).encode())
        return False
    there = flatten(to_dict(config_from_yaml(storage.read_bytes(place).decode(), place)))
    here = flatten(to_dict(config))
    changed = [key for key in here if here[key] != there.get(key)]
    if changed:
        shown = ", ".join(f"{key} {there.get(key)} -> {here[key]}" for key in changed[:_SHOWN_DIFFERENCES])
        more = f" and {len(changed) - _SHOWN_DIFFERENCES} more" if len(changed) > _SHOWN_DIFFERENCES else ""
        raise UserError(
            f"the run {name} exists with another config ({shown}{more}): give this one another --name"
        )
    return True
