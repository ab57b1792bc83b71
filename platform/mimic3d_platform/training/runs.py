"""A run's place in storage and its identity: a name stands for one config, one data set and one start."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from mimic3d.config import Config, config_from_yaml, config_to_yaml, flatten, to_dict
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError

CONFIG = "config.yaml"
ORIGIN = "origin.json"
_SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class Origin:
    """What a run is made of beside its config."""

    data: str
    """The data set's fingerprint."""
    start: str = ""
    """A SHA-256 of what `config.start` names."""
    perceptual: str = ""
    """The networks of the imitation loss and of the Fréchet distance; a run keeps those it began with."""
    frechet: str = ""


def check_name(name: str) -> str:
    """`name`, if it can be a folder, an object's key and an MLflow run's name at once."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"run name {name!r}: use up to 100 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def known_origin(runs_uri: str, name: str) -> Origin | None:
    """What the run was made of when it began; None where there is no such run."""
    place = storage.join(runs_uri, check_name(name), ORIGIN)
    if not storage.exists(place):
        return None
    try:
        return Origin(**json.loads(storage.read_bytes(place)))
    except (ValueError, TypeError):
        raise UserError(f"{place} is damaged: delete it if the data set is the one of the run") from None


def claim(runs_uri: str, name: str, config: Config, origin: Origin) -> bool:
    """Takes the run's name for this config and origin.

    Returns:
        whether the run was there already and goes on.
    Raises:
        UserError: the name belongs to another config, data set or start; the first differences are shown.
    """
    place = storage.join(runs_uri, check_name(name), CONFIG)
    if not storage.exists(place):
        storage.ensure_bucket(runs_uri)
        _write_origin(runs_uri, name, origin)
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
    before = known_origin(runs_uri, name)
    if before is None:
        _write_origin(runs_uri, name, origin)
        return True
    for what, key, uri in (
        ("data set", "data", config.data.uri),
        ("start", "start", config.start),
    ):
        old, new = getattr(before, key), getattr(origin, key)
        if old != new:
            raise UserError(
                f"the run {name} began with another {what} at {uri} (fingerprint {old[:12]} -> {new[:12]}): "
                "put the former one back, or give this run another --name"
            )
    return True


def _write_origin(runs_uri: str, name: str, origin: Origin) -> None:
    place = storage.join(runs_uri, name, ORIGIN)
    storage.write_bytes(place, json.dumps(asdict(origin), indent=1).encode())
