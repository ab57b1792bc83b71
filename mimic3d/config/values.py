"""Conversion of plain values, as YAML and overrides have them, to the typed config; errors in one line."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


class ConfigError(ValueError):
    """An invalid configuration, in one line: the key, its value and what is allowed."""


def require(holds: bool, key: str, value: object, expected: str) -> None:
    """Raises `ConfigError` unless `holds`: the key must be `expected`."""
    if not holds:
        raise ConfigError(f"{key} is {value!r}, but must be {expected}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections to dotted keys: {"a": {"b": 1}} to {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences between two sets of dotted keys, as "KEY OLD -> NEW"; None stands for a missing key."""
    keys = dict.fromkeys([*new, *old])
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def build(cls: type, values: Any, path: str) -> Any:
    """An instance of the dataclass `cls` from nested plain values; `path` is its dotted key in the config."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'} is {values!r}, but must be a section of keys")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), hints, n=1)
        hint = f"; did you mean {_join(path, near[0])}?" if near else f"; known: {', '.join(hints)}"
        raise ConfigError(f"unknown config key {_join(path, str(unknown[0]))}{hint}")
    return cls(**{key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    if origin is Literal:
        require(value in arguments, path, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None or value in ("none", "null"):
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path)
    if origin is tuple:
        items = value.strip("()[]").split(",") if isinstance(value, str) else value
        require(isinstance(items, list | tuple) and len(items) == len(arguments), path, value, _kind(hint))
        return tuple(_convert(kind, item, path) for kind, item in zip(arguments, items, strict=True))
    return _convert_scalar(hint, value, path)


def _convert_scalar(hint: type, value: Any, path: str) -> Any:
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and hint in (int, float):
        try:
            value = hint(value)
        except ValueError:
            require(False, path, value, _kind(hint))
    if hint is float and type(value) is int:
        value = float(value)
    require(type(value) is hint, path, value, _kind(hint))
    require(hint is not float or math.isfinite(value), path, value, "a finite number")
    return value


def _kind(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, f"of type {hint}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
