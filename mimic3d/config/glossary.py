"""The glossary of all config keys, `docs/config.md`, from the types and docstrings of the schema.

python -m mimic3d.config.glossary > docs/config.md
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import types
import typing
from typing import Annotated, Literal

from mimic3d.config import schema, sections
from mimic3d.config.bounds import Bound, WholeBatches, field_types, metadata_of

HEADING = """# Config keys

For anyone who writes a recipe, an override (`--set imitation.lpips_weight=0.5`) or a sweep: every key of a
run's config with its possible values, its default and its meaning. The defaults are the paper's at 512²;
recipes have others. A run writes all its keys to `config.yaml`; keys that a config file leaves out have their
defaults. Keys that end in `_kimg` count thousands of real images that the discriminator has seen.

This page is generated: `python -m mimic3d.config.glossary > docs/config.md`.
"""
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "none"}


def glossary() -> str:
    """The page as Markdown: a table for the config itself, and one for each section."""
    documented = field_docstrings()
    parts = [HEADING]
    classes: dict[str, type[schema.Config] | type[sections.Section]] = {
        "": schema.Config,
        **section_classes(),
    }
    for name, section in classes.items():
        title = f"`{name}`" if name else "The run"
        summary = inspect.cleandoc(section.__doc__ or "")
        parts.append(f"## {title}\n\n{' '.join(summary.split())}\n")
        rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
        hints = field_types(section)
        for field in dataclasses.fields(section):
            if dataclasses.is_dataclass(hints[field.name]):
                continue
            meaning = " ".join(documented[section.__name__, field.name].split())
            value, default = _value(hints[field.name]), _plain(field.default)
            key = f"{name}.{field.name}" if name else field.name
            rows.append(f"| `{key}` | {value} | {default} | {meaning} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def section_classes() -> dict[str, type[sections.Section]]:
    """The section classes by the name of their key in `Config`."""
    hints = field_types(schema.Config).items()
    return {
        name: hint for name, hint in hints if isinstance(hint, type) and issubclass(hint, sections.Section)
    }


def field_docstrings() -> dict[tuple[str, str], str]:
    """The string below each field of the schema's classes, by (class, field)."""
    found = {}
    modules = (ast.parse(inspect.getsource(module)) for module in (sections, schema))
    for node in itertools.chain.from_iterable(module.body for module in modules):
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            if (
                isinstance(node, ast.ClassDef)
                and isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[node.name, field.target.id] = text.value.value
    return found


def _value(hint: object) -> str:
    """The type of a key with its bounds, in words."""
    bounds = [mark.expected for mark in metadata_of(hint) if isinstance(mark, Bound)]
    if any(isinstance(mark, WholeBatches) for mark in metadata_of(hint)):
        bounds.append("whole batches")
    return ", ".join([_type(hint), *dict.fromkeys(bounds)])


def _type(hint: object) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is tuple:
        return f"{len(arguments)} × {_type(arguments[0])}"
    return _WORDS[typing.cast(type, hint)]


def _plain(value: object) -> str:
    """A default as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return ", ".join(map(_plain, value))
    return str(value) if value != "" else "(empty)"


if __name__ == "__main__":
    print(glossary(), end="")
