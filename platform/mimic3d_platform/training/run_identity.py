"""The identity of a run: its name stands for one config, one data set and one start.

They are kept in the run's folder as `config.yaml` and `origin.json`, and compared at each start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import (
    Config,
    ConfigError,
    config_from_yaml,
    config_to_yaml,
    differences,
    flatten,
    to_dict,
)
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.tracking.staged_run import StagedRun

ORIGIN = "origin.json"
# In the folder of a sweep, which is beside those of runs.
SWEEP = "sweep.yaml"
_SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class RunOrigin:
    """The inputs that determine a run beside its config."""

    data: str
    """The data set's fingerprint."""
    start: str = ""
    """A SHA-256 of the weights that `config.start` names."""
    perceptual: str = ""
    """The feature network of the imitation loss; a run keeps the one that it began with."""
    frechet: str = ""
    """The feature network of the Fréchet distance; likewise."""


@dataclass(frozen=True)
class TrainingRun:
    """A run as its driver and its workers know it."""

    config: Config
    name: str
    runs_uri: str
    """The folder of all runs; this one's is `<runs_uri>/<name>`."""
    origin: RunOrigin
    mlflow: StagedRun
    former_configs: Collection[str] = ()
    """Fingerprints of the run's config before it was extended; its checkpoints may have them."""


def check_name(name: str) -> str:
    """Returns `name` if it can be a folder, an object's key and the name of an MLflow run.

    Raises:
        UserError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"run name {name!r}: use up to 100 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def read_config_file(uri: str) -> Config:
    """The config in a YAML file.

    Raises:
        UserError: the file cannot be read.
        ConfigError: it is not UTF-8 text, or not a config of this version.
    """
    try:
        text = storage.read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"cannot read the config file {uri}: it is not UTF-8 text; correct or replace it"
        ) from error
    return config_from_yaml(text, uri)


def read_config(runs_uri: str, name: str) -> Config:
    """The config of a run.

    Raises:
        UserError: there is no such run.
        ConfigError: its config is of another version.
    """
    uri = storage.join(runs_uri, check_name(name), CONFIG)
    if not storage.exists(uri):
        raise UserError(f"there is no run {name} in {runs_uri}: `mimic3d runs list` shows the runs")
    return read_config_file(uri)


def read_origin(runs_uri: str, name: str) -> RunOrigin | None:
    """The origin of a run when it began; None where there is no such run."""
    uri = storage.join(runs_uri, check_name(name), ORIGIN)
    if not storage.exists(uri):
        return None
    try:
        return RunOrigin(**json.loads(storage.read_bytes(uri)))
    except (ValueError, TypeError):
        raise UserError(f"{uri} is damaged: delete it if the data set is the one of the run") from None


def claim_run(runs_uri: str, name: str, config: Config, origin: RunOrigin) -> bool:
    """Takes a run's name for a config and an origin.

    Returns:
        whether the run exists already, and is to be resumed.
    Raises:
        UserError: the name belongs to another config, data set or start; shows the first differences.
    """
    uri = storage.join(runs_uri, check_name(name), CONFIG)
    if storage.exists(storage.join(runs_uri, name, SWEEP)):
        raise UserError(f"{name} is a sweep already: give the run another --name")

    def changes(text: str) -> list[str]:
        existing = config_from_yaml(text, uri)
        return differences(flatten(to_dict(existing)), flatten(to_dict(config)))

    exists = claim_name(uri, config_to_yaml(config), changes, f"the run {name} exists with another config")
    known = read_origin(runs_uri, name)
    if known is None:
        uri = storage.join(runs_uri, name, ORIGIN)
        storage.write_bytes(uri, json.dumps(asdict(origin), indent=1).encode())
        return exists
    check_origin(name, config, known, origin)
    return exists


def check_origin(name: str, config: Config, known: RunOrigin, present: RunOrigin) -> None:
    """Compares the data set and the start that a run began with with the present ones.

    Raises:
        UserError: one of them has changed under its URI.
    """
    _require_same(name, "data set", config.data.uri, known.data, present.data)
    _require_same(name, "start", config.start, known.start, present.start)


def claim_name(uri: str, text: str, changes: Callable[[str], list[str]], conflict: str) -> bool:
    """Takes a name by writing `text`, which a run or sweep of the name is made of, to `uri`.

    Args:
        changes: the differences between `text` and what was written before under the name; empty if they
            mean the same.
        conflict: begins the message of the error where there are any.
    Returns:
        whether the name was taken before, for the same.
    Raises:
        UserError: the name was taken for something else; shows the first differences.
    """
    if not storage.exists(uri):
        storage.ensure_bucket(uri.rpartition("/")[0])
        if storage.create_bytes(uri, text.encode()):
            return False
    found = changes(storage.read_bytes(uri).decode())
    if found:
        more = f" and {len(found) - _SHOWN_DIFFERENCES} more" if len(found) > _SHOWN_DIFFERENCES else ""
        raise UserError(
            f"{conflict} ({', '.join(found[:_SHOWN_DIFFERENCES])}{more}): give this one another --name"
        )
    return True


def _require_same(name: str, what: str, uri: str, known: str, present: str) -> None:
    if known != present:
        raise UserError(
            f"the run {name} began with another {what} at {uri} (fingerprint {known[:12]} -> "
            f"{present[:12]}): put the former one back, or give this run another --name"
        )
