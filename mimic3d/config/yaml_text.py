"""A config as YAML, as a run writes it beside its results and `mimic3d train FILE.yaml` reads it."""

from __future__ import annotations

import yaml

from mimic3d.config.schema import Config, from_dict, to_dict
from mimic3d.config.values import ConfigError


def config_to_yaml(config: Config) -> str:
    """The whole config as YAML, keys in the order of the schema."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def config_from_yaml(text: str, where: str) -> Config:
    """The config of YAML text, in which missing keys take their defaults.

    Args:
        where: names the text's source in errors.
    Raises:
        ConfigError: the text is not YAML, or not a config.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{where} is not YAML ({reason}): correct or replace it") from None
    try:
        return from_dict(values if values is not None else {})
    except ValueError as error:
        raise type(error)(f"{where}: {error}") from None
