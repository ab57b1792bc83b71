"""What the user asked for becomes a config: a recipe or a file, a data set, overrides."""

from __future__ import annotations

from pathlib import Path

from mimic3d.config import Config, config_from_yaml, override
from mimic3d.config.recipes import get_recipe
from mimic3d_platform.errors import UserError


def resolve_config(recipe: str, data_uri: str | None, assignments: list[str]) -> Config:
    """The config of a recipe's name or a YAML file, with `data.uri` and KEY=VALUE overrides.

    Raises:
        UserError: no data set is named, or an assignment is no KEY=VALUE.
        ConfigError: unknown recipe or key, wrong type, impossible combination.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"there is no config file {path}: check the path, or name a recipe")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"cannot read the config file {path}: {reason}; correct or replace it") from error
        config = config_from_yaml(text, str(path))
    else:
        config = get_recipe(recipe)
    changes: dict[str, str] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise UserError(f"--set {assignment}: write KEY=VALUE, such as imitation.lpips_weight=0.5")
        changes[key.strip()] = value.strip()
    if data_uri is not None:
        changes["data.uri"] = data_uri
    config = override(config, changes)
    config.require_start()
    if not config.data.uri:
        raise UserError("no data set is named: give --data s3://…, or make one with `mimic3d data render`")
    return config
