"""Extends runs: a run continues to a greater length under its name, from its last checkpoint.

All that depends on images consumed continues as in one longer run. Only a cool-down of the learning rates
does not: it has taken place before the former end. Each extension is recorded in the run's folder.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import Config, config_to_yaml, differences, fingerprint, flatten, to_dict
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.result import delete_result
from mimic3d_platform.training.run_identity import check_name, read_config_file

EXTENSIONS = "extensions.json"
LENGTHS = ("schedule.stage1_kimg", "schedule.stage2_kimg")


@dataclass(frozen=True)
class Extension:
    """A former length of a run."""

    config: str
    """The fingerprint of the run's config with that length."""
    kimg: float
    to_kimg: float
    date: str
    """When it was extended, in UTC (ISO 8601)."""


def read_extensions(runs_uri: str, name: str) -> tuple[Extension, ...]:
    """The extensions of a run, oldest first; none if it was never extended.

    Raises:
        UserError: their record is damaged.
    """
    uri = storage.join(runs_uri, check_name(name), EXTENSIONS)
    if not storage.exists(uri):
        return ()
    try:
        return tuple(Extension(**values) for values in json.loads(storage.read_bytes(uri)))
    except (ValueError, TypeError):
        raise UserError(f"{uri} is damaged: restore it, or train a run of another --name") from None


def extend_run(runs_uri: str, name: str, config: Config) -> str | None:
    """Replaces the config of a run by one that differs in its length alone, and deletes its result.

    The caller holds the run's lock. An extension that was interrupted is completed by the next call.

    Returns:
        A line for the user; None if the run has this config already.
    Raises:
        UserError: there is no such run, it differs in other keys, is not longer, or its stage 1 is over.
    """
    uri = storage.join(runs_uri, check_name(name), CONFIG)
    if not storage.exists(uri):
        raise UserError(f"there is no run {name} to extend in {runs_uri}: train it without --extend first")
    former = read_config_file(uri)
    if former == config:
        return None
    _check_lengths(name, former, config)
    old, new = former.total_nimg / 1000, config.total_nimg / 1000
    known = read_extensions(runs_uri, name)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    extensions = [*known, Extension(fingerprint(former), old, new, now)]
    record = json.dumps([asdict(each) for each in extensions], indent=1)
    storage.write_bytes(storage.join(runs_uri, name, EXTENSIONS), record.encode())
    delete_result(runs_uri, name)
    storage.write_bytes(uri, config_to_yaml(config).encode())
    line = f"the run {name} is extended from {old:g} to {new:g} kimg"
    if cooldown := min(former.schedule.cooldown_kimg, old):
        line += (
            f"; up to {cooldown:g} kimg before its former end were trained at falling learning rates "
            "(schedule.cooldown_kimg), which one longer run would not have done"
        )
    return line


def _check_lengths(name: str, former: Config, config: Config) -> None:
    """Raises a `UserError` unless `config` is `former` with more images at its end."""
    changes = differences(flatten(to_dict(former)), flatten(to_dict(config)))
    others = [change for change in changes if change.partition(" ")[0] not in LENGTHS]
    if others:
        raise UserError(
            f"the run {name} can be extended in {' and '.join(LENGTHS)} only, not in "
            f"{', '.join(others[:4])}: give this one another --name"
        )
    has_stage2 = former.total_nimg > former.stage1_nimg  # EG3D never has one.
    if has_stage2 and config.schedule.stage1_kimg != former.schedule.stage1_kimg:
        raise UserError(
            f"stage 1 of the run {name} is over: extend schedule.stage2_kimg, or train a new run that starts "
            "from this one (--set start=…)"
        )
    if config.total_nimg <= former.total_nimg:
        raise UserError(
            f"the run {name} has {former.total_nimg / 1000:g} kimg, {config.total_nimg / 1000:g} do not "
            f"extend it: raise {LENGTHS[1] if has_stage2 else LENGTHS[0]}"
        )
