"""The search space: dotted paths of the config and the values that each may take.

A drawn value is a function of (seed, index, path), so the points of a sweep do not depend on when they are
drawn.
"""

from __future__ import annotations

import difflib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimic3d.config import Config, ConfigError, flatten, override, to_dict
from mimic3d_platform.errors import UserError

# The path under which a case, a named set of overrides, is a parameter like others.
CASE = "case"
LISTS = ("grid", "choice")
RANGES = ("uniform", "quniform", "loguniform", "int", "logint")
_PROBES = 32
_MAX_CORNERS = 64

Value = Any
"""A scalar of YAML, or a tuple of them."""
Point = dict[str, Value]
"""A value for each path."""


@dataclass(frozen=True)
class Parameter:
    """One dimension of the space.

    Attributes:
        path: a dotted path of the config, or `CASE`.
        kind: of `LISTS`: every value is tried (grid) or one is drawn (choice); or of `RANGES`, with both
            bounds included.
        values: the list; or (low, high), and the step for quniform.
    """

    path: str
    kind: str
    values: tuple[Value, ...]

    @property
    def is_list(self) -> bool:
        """True if the values are listed, False for a range."""
        return self.kind in LISTS

    def sample(self, source: random.Random) -> Value:
        """One value, uniform over the list, the range or the range's logarithm."""
        if self.is_list:
            return source.choice(self.values)
        low, high = self.values[:2]
        if self.kind == "int":
            return source.randint(low, high)
        if self.kind == "logint":
            return self._clipped(round(math.exp(source.uniform(math.log(low), math.log(high)))))
        if self.kind == "loguniform":
            return self._clipped(math.exp(source.uniform(math.log(low), math.log(high))))
        value = source.uniform(low, high)
        return self._quantized(value) if self.kind == "quniform" else value

    def perturb(self, value: Value, source: random.Random, factors: Sequence[float]) -> Value:
        """A value near `value`: a neighbour in the list, or the product with one of `factors`."""
        if self.is_list:
            place = self.values.index(value) + source.choice((-1, 1))
            return self.values[min(max(place, 0), len(self.values) - 1)]
        moved = value * source.choice(tuple(factors))
        if self.kind in ("int", "logint"):
            nearest = round(moved)
            moved = nearest if nearest != value else value + (1 if moved > value else -1)
        return self._clipped(self._quantized(moved) if self.kind == "quniform" else moved)

    def extremes(self) -> tuple[Value, ...]:
        """Every value of a list, both bounds of a range."""
        return self.values if self.is_list else self.values[:2]

    def _clipped(self, value: float) -> float:
        return min(max(value, self.values[0]), self.values[1])

    def _quantized(self, value: float) -> float:
        low, _, step = self.values
        # Twelve digits: 0.1 + 2 · 0.1 is 0.3 in a table and in a run's config.
        return self._clipped(float(f"{low + round((value - low) / step) * step:.12g}"))


@dataclass(frozen=True)
class Space:
    """All parameters, and the overrides that each case stands for."""

    parameters: tuple[Parameter, ...]
    cases: Mapping[str, Mapping[str, Value]]

    @property
    def paths(self) -> list[str]:
        """The parameters' paths, in their order."""
        return [parameter.path for parameter in self.parameters]

    def grid(self) -> list[Point]:
        """The product of all parameters of kind `grid`; the last one changes fastest."""
        grids = [parameter for parameter in self.parameters if parameter.kind == "grid"]
        columns = itertools.product(*(parameter.values for parameter in grids))
        return [dict(zip([p.path for p in grids], values, strict=True)) for values in columns]

    def sample(self, seed: int, index: int) -> Point:
        """Point `index` of a random search: the points of the grid in turn, all other values drawn."""
        grid = self.grid()
        return {
            parameter.path: grid[index % len(grid)][parameter.path]
            if parameter.kind == "grid"
            else parameter.sample(random.Random(f"{seed}/{index}/{parameter.path}"))
            for parameter in self.parameters
        }

    def overrides(self, point: Point) -> dict[str, Value]:
        """The config's keys and values of a point; those of its case come first."""
        values = {path: value for path, value in point.items() if path != CASE}
        return (dict(self.cases[point[CASE]]) if CASE in point else {}) | values

    def check(self, base: Config, seed: int, check_config: Callable[[Config], None]) -> None:
        """Builds the configs of every listed value, of all bounds, of corners and of some drawn points.

        Args:
            check_config: raises `ConfigError` for a config that cannot be a trial's.
        Raises:
            UserError: an unknown path, or values that make no config of a trial.
        """
        known = flatten(to_dict(base))
        for path in (*self.paths, *(path for case in self.cases.values() for path in case)):
            if path != CASE and path not in known:
                near = difflib.get_close_matches(path, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
                raise UserError(f"space: the config has no key {path}; {hint}")
        first = {parameter.path: parameter.extremes()[0] for parameter in self.parameters}
        one_by_one = (
            first | {parameter.path: value} for parameter in self.parameters for value in parameter.extremes()
        )
        drawn = (self.sample(seed, index) for index in range(_PROBES))
        for point in itertools.chain(one_by_one, self._corners(), drawn):
            try:
                check_config(override(base, self.overrides(point)))
            except ConfigError as error:
                at = ", ".join(f"{path} {value}" for path, value in point.items())
                raise UserError(f"space: at {at}: {error}") from error

    def _corners(self) -> Iterator[Point]:
        """The first `_MAX_CORNERS` combinations of all lists and bounds."""
        corners = itertools.product(*(parameter.extremes() for parameter in self.parameters))
        for values in itertools.islice(corners, _MAX_CORNERS):
            yield dict(zip(self.paths, values, strict=True))


def parse_space(space: Mapping[str, object], cases: Mapping[str, Mapping[str, Value]]) -> Space:
    """The space of a sweep file: {path: {kind: values}}, and cases by name.

    Raises:
        UserError: an unknown kind, or values that the kind cannot have.
    """
    if CASE in space:
        raise UserError(f"space: {CASE} is no key of the config; write named sets of overrides under cases")
    parameters = [_parameter(path, given) for path, given in space.items()]
    for case, overrides in cases.items():
        if twice := sorted(overrides.keys() & space.keys()):
            raise UserError(f"cases: {case} sets {twice[0]}, which space varies too; take one away")
    if cases:
        parameters.insert(0, Parameter(CASE, "grid", tuple(cases)))
    if not parameters:
        raise UserError("space: nothing is varied; write at least one path, or cases")
    return Space(tuple(parameters), cases)


def _parameter(path: str, given: object) -> Parameter:
    where = f"space: {path}"
    if not isinstance(given, Mapping) or len(given) != 1:
        raise UserError(f"{where} is {given!r}; write one kind and its values, such as {{grid: [0.5, 1]}}")
    [(kind, values)] = given.items()
    if kind not in LISTS + RANGES:
        near = difflib.get_close_matches(str(kind), LISTS + RANGES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(LISTS + RANGES)}"
        raise UserError(f"{where}: unknown kind {kind}; {hint}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {kind} is {values!r}; write a list")
    if kind in LISTS:
        values = [tuple(value) if isinstance(value, list) else value for value in values]
        try:
            twice = len(set(values)) < len(values)
        except TypeError as error:
            raise UserError(f"{where}: {kind} is {values}; write numbers, text or lists of them") from error
        if twice:
            raise UserError(f"{where}: {kind} names a value twice; take one away")
        return Parameter(path, kind, tuple(values))
    return Parameter(path, kind, _bounds(where, kind, values))


def _bounds(where: str, kind: str, values: list[Any]) -> tuple[float, ...]:
    """(low, high), and the step for quniform; whole numbers for int and logint."""
    form = "[low, high, step]" if kind == "quniform" else "[low, high]"
    number: type[int] | type[float] = int if kind in ("int", "logint") else float
    try:
        bounds = tuple(number(value) for value in values)
        fits = (
            len(bounds) == form.count(",") + 1 and all(map(math.isfinite, bounds)) and bounds[0] < bounds[1]
        )
        exact = number is float or all(float(value) == int(value) for value in values)
        exact &= not any(isinstance(value, bool) for value in values)
    except (TypeError, ValueError):
        fits = exact = False
    if not fits or not exact:
        whole = " of whole numbers" if number is int else ""
        raise UserError(f"{where}: {kind} is {values}; write {form}{whole}, low below high")
    if kind in ("loguniform", "logint") and bounds[0] <= 0:
        raise UserError(f"{where}: {kind} is {values}; both must be more than 0")
    if kind == "quniform":
        steps = (bounds[1] - bounds[0]) / bounds[2] if bounds[2] > 0 else 0.0
        if round(steps) < 1 or abs(steps - round(steps)) > 1e-8:
            raise UserError(f"{where}: {kind} is {values}; the step must divide the range evenly")
    return bounds
