"""Reads a sweep file, with the data set and overrides of a command line, and writes it resolved."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mimic3d.config import ConfigError, differences, flatten, from_dict, override, to_dict
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError, one_line
from mimic3d_platform.training.config_from_command import assign, resolve_config
from mimic3d_platform.tuning.checks import check_sweep
from mimic3d_platform.tuning.schema import OWN, SHARED, Asha, Objective, Pbt, Section, Sweep, SweepFile

Model = TypeVar("Model", bound=BaseModel)


def load_sweep(path: str | Path, data: str | None = None, assignments: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file.

    Args:
        data: the data set's URI, in place of the file's.
        assignments: overrides KEY=VALUE of the config, after the file's.
    Raises:
        UserError: no such file, an unknown key, a wrong value, an impossible combination.
        ConfigError: the recipe, its config or an override is wrong.
    """
    where = str(path)
    wanted = "name a sweep file, such as sweeps/minutes.yaml"
    if not storage.exists(where):
        raise UserError(f"the sweep {where}: there is no such file; {wanted}")
    try:
        text = storage.read_bytes(where).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"the sweep {where}: it cannot be read; {wanted}") from error
    values = _mapping(text, where)
    if isinstance(values.get("config"), dict):  # Its config is resolved already.
        return _resolved(values, where, data, assignments)
    file = _validated(SweepFile, values, where)
    if (file.recipe is None) == (file.config is None):
        raise UserError(f"{where}: name either a recipe or a config file, and not both")
    base = file.recipe or _beside(where, str(file.config))
    given = [f"{key}={_text(value)}" for key, value in file.overrides.items()]
    try:
        config = resolve_config(base, data or file.data, [*given, *assignments])
    except (ConfigError, UserError) as error:
        if assignments:  # The mistake may be in them.
            raise
        raise type(error)(f"{where}: {error}") from error
    kept = values.keys() - {"recipe", "config", "data", "overrides"}
    sweep = _validated(Sweep, {key: values[key] for key in kept} | {"config": to_dict(config)}, where)
    check_sweep(sweep, where)
    return sweep


def rooted(sweep: Sweep) -> Sweep:
    """The sweep with absolute places: trials run in other folders and processes."""
    base = sweep.base
    places = {"data.uri": storage.absolute(base.data.uri), "start": storage.absolute(base.start)}
    stage1 = sweep.stage1 if sweep.stage1 in (SHARED, OWN) else storage.absolute(sweep.stage1)
    return sweep.model_copy(update={"config": to_dict(override(base, places)), "stage1": stage1})


def parse_sweep(text: str, where: str) -> Sweep:
    """Reads what `sweep_to_yaml` wrote; `where` names its source in errors.

    Raises:
        UserError, ConfigError: as `load_sweep`.
    """
    return _resolved(_mapping(text, where), where, None, ())


def sweep_to_yaml(sweep: Sweep) -> str:
    """The sweep as a file that depends on no other."""
    return yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def sweep_differences(stored: Sweep, given: Sweep) -> list[str]:
    """The differences between two sweeps, sorted: "KEY OLD -> NEW" for each key."""
    old, new = (flatten(sweep.model_dump(mode="json")) for sweep in (stored, given))
    return sorted(differences(old, new))


def _beside(file: str, name: str) -> str:
    """The path or URI of the file that a sweep file names: relative to the sweep file's own folder."""
    folder = file.rpartition("/")[0]
    if not folder or not storage.is_local(name) or Path(name).is_absolute():
        return name
    return storage.join(folder, name)


def _resolved(values: Mapping[str, Any], where: str, data: str | None, assignments: Sequence[str]) -> Sweep:
    sweep = _validated(Sweep, values, where)
    config = assign(from_dict(sweep.config), assignments, data)
    sweep = sweep.model_copy(update={"config": to_dict(config)})
    check_sweep(sweep, where)
    return sweep


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no sweep: write keys such as recipe, space and objectives")
    return values


def _text(value: object) -> str:
    """A value of a sweep file as `--set` takes it."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _validated(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """The values as a `model`; a mistake in them is a `UserError` that names the key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        # A misspelt key is reported as unknown and, under its right name, as missing.
        first = next((entry for entry in found if entry["type"] == "extra_forbidden"), found[0])
        parts = [str(part) for part in first["loc"] if part not in ("asha", "pbt")]
        path = ".".join(parts)
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, first["loc"][:-1])
            near = difflib.get_close_matches(parts[-1], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {path}; {hint}") from error
        if first["type"] == "missing":
            raise UserError(f"{where}: {path} is missing; write it") from error
        reason = first["msg"][0].lower() + first["msg"][1:]
        if first["type"].startswith("union_tag"):
            reason = "write {name: asha, …} or {name: pbt, …}"
        raise UserError(f"{where}: {path} is {first['input']!r}: {reason}") from error


def _known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `loc`, the path of a validation error."""
    sections: dict[int | str, type[BaseModel]] = {"asha": Asha, "pbt": Pbt, "objectives": Objective}
    for part in loc:
        if part in sections:
            model = sections[part]
        elif part in model.model_fields:
            kind = model.model_fields[str(part)].annotation
            model = kind if isinstance(kind, type) and issubclass(kind, Section) else model
    return list(model.model_fields)
