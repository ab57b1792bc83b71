"""Bounds of config keys, written in the type of the field: `batch: Annotated[int, at_least(1)] = 32`."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated

from mimic3d.config.values import require

# Resolving a class's annotations takes longer than making an instance of it.
_FIELD_TYPES: dict[type, dict[str, object]] = {}


@dataclasses.dataclass(frozen=True)
class Bound:
    """A condition on the value of a key, and how an error message states it."""

    holds: Callable[[float], bool]
    expected: str


@dataclasses.dataclass(frozen=True)
class WholeBatches:
    """Marks a number of kimg that must be a whole number of batches; `Config` checks it."""


def at_least(least: float) -> Bound:
    """The value is `least` or more."""
    return Bound(lambda value: value >= least, f"at least {least}")


def more_than(bound: float) -> Bound:
    """The value is larger than `bound`."""
    return Bound(lambda value: value > bound, f"more than {bound}")


def between(least: float, most: float) -> Bound:
    """The value is from `least` to `most`, both included."""
    return Bound(lambda value: least <= value <= most, f"from {least} to {most}")


def inside(low: float, high: float) -> Bound:
    """The value is between `low` and `high`, both excluded."""
    return Bound(lambda value: low < value < high, f"more than {low} and less than {high}")


def zero_or_at_least(least: float) -> Bound:
    """The value is 0, or `least` or more."""
    return Bound(lambda value: value == 0 or value >= least, f"0, or at least {least}")


Count = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
NonNegative = Annotated[float, at_least(0)]
Positive = Annotated[float, more_than(0)]
Fraction = Annotated[float, between(0, 1)]
Decay = Annotated[float, Bound(lambda value: 0 <= value < 1, "from 0 to less than 1")]
Resolution = Annotated[
    int, Bound(lambda value: value >= 4 and math.log2(value).is_integer(), "a power of two from 4")
]


def field_types(cls: type) -> dict[str, object]:
    """The types of a dataclass's fields, with their `Annotated` metadata."""
    if cls not in _FIELD_TYPES:
        hints = typing.get_type_hints(cls, include_extras=True)
        _FIELD_TYPES[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return _FIELD_TYPES[cls]


def metadata_of(hint: object) -> Iterator[object]:
    """The `Annotated` metadata anywhere in a type."""
    if typing.get_origin(hint) is Annotated:
        yield from hint.__metadata__  # type: ignore[attr-defined]
    for argument in typing.get_args(hint):
        yield from metadata_of(argument)


def check_bounds(section: object, name: str) -> None:
    """Checks every field of the dataclass `section` against the bounds in its type.

    Args:
        name: of the section, which precedes the field's name in errors.
    Raises:
        ConfigError: a value is out of its bounds.
    """
    for key, hint in field_types(type(section)).items():
        value = getattr(section, key)
        if value is None:
            continue
        optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
        for bound in metadata_of(hint):
            if not isinstance(bound, Bound):
                continue
            for number in value if isinstance(value, tuple) else (value,):
                expected = f"{bound.expected}, or none" if optional else bound.expected
                require(bound.holds(number), f"{name}.{key}" if name else key, number, expected)
