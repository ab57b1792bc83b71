"""The sweep file: typed, closed and complete, as a config is."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from mimic3d.config import Config, ConfigError, flatten, from_dict, override, to_dict
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.resolve_config import resolve_config
from mimic3d_platform.tuning.space import Space, parse_space

SHARED, OWN = "shared", "own"
# What a stage 1 that all trials share has settled.
_OF_STAGE1 = ("data.uri", "schedule.stage1_kimg", "start")
_MODEL_MAY_VARY = ("model.precision",)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Objective(_Section):
    """A metric and its better direction.

    `frechet/3d` stands for the Fréchet distance with whatever extractor the runs use.
    """

    metric: str = Field(min_length=1)
    mode: Literal["min", "max"]


class SearchMethod(_Section):
    """Where the points come from; `pbt` goes with `random`, which draws the first generation."""

    algorithm: Literal["grid", "random", "tpe"] = "random"
    seed: int = Field(0, ge=0)
    startup: int = Field(8, ge=1)
    """Random points before tpe has something to learn from."""


class Asha(_Section):
    """Asynchronous successive halving: a trial goes on if it is among the best 1/reduction of its rung."""

    name: Literal["asha"]
    grace_kimg: float = Field(gt=0)
    reduction: int = Field(3, ge=2)


class Pbt(_Section):
    """Population based training: after each interval the worst take over weights and values of the best."""

    name: Literal["pbt"]
    population: int = Field(ge=2)
    interval_kimg: float = Field(gt=0)
    quantile: float = Field(0.25, gt=0, le=0.5)
    resample: float = Field(0.25, ge=0, le=1)
    factors: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25)


class Budget(_Section):
    """No trial starts beyond it; what runs ends. None is no limit. A shared stage 1 is not counted."""

    trials: int | None = Field(None, ge=1)
    kimg: float | None = Field(None, gt=0)
    hours: float | None = Field(None, gt=0)


class Trials(_Section):
    """How trials run."""

    workers: int = Field(1, ge=1)
    concurrency: int | None = Field(None, ge=1)
    """Trials at once; as many as the cluster holds when None."""
    failures: int = Field(1, ge=0)
    """Attempts after the first, each going on from the trial's last checkpoint."""


class Sweep(_Section):
    """A sweep file whose config is resolved: nothing outside it decides what is trained."""

    config: dict[str, Any]
    stage1: str = Field(OWN, min_length=1)
    """`shared`: trained once by the sweep; `own`: by each trial; else the URI of a checkpoint or a run."""
    space: dict[str, Any] = Field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = Field(default_factory=dict)
    objectives: list[Objective] = Field(min_length=1)
    search: SearchMethod = SearchMethod()
    scheduler: Asha | Pbt | None = Field(None, discriminator="name")
    budget: Budget = Budget()
    trials: Trials = Trials()

    @property
    def base(self) -> Config:
        """What all trials share."""
        return from_dict(self.config)

    @property
    def points(self) -> Space:
        return parse_space(self.space, self.cases)

    @property
    def forks(self) -> bool:
        """Whether trials start from one stage 1."""
        return self.stage1 != OWN

    @property
    def trial_kimg(self) -> float:
        """What a trial trains that keeps to the base's lengths and is not stopped early."""
        base = self.base
        return (base.total_nimg - (base.stage1_nimg if self.forks else 0)) / 1000

    def check_split(self, config: Config) -> None:
        """Raises `ConfigError` unless the workers of a trial can share its batches."""
        batch, accumulate, workers = config.schedule.batch, config.schedule.accumulate, self.trials.workers
        if batch % (workers * accumulate):
            micro = f" in {accumulate} parts" if accumulate > 1 else ""
            raise ConfigError(
                f"schedule.batch {batch}{micro} cannot be split among {workers} workers: change "
                "trials.workers"
            )


class _SweepFile(Sweep):
    """As it is written: the config is a recipe or a file, with overrides."""

    config: str | None = None  # type: ignore[assignment]
    recipe: str | None = None
    data: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)


def load_sweep(path: str | Path, data: str | None = None, assignments: typing.Sequence[str] = ()) -> Sweep:
    """Reads a sweep file, with the data set and overrides of a command line.

    Raises:
        UserError: no such file, an unknown key, a wrong value, a combination that cannot be.
        ConfigError: the recipe, its config or an override is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else "it cannot be read"
        raise UserError(
            f"the sweep {path}: {reason}; name a sweep file, such as sweeps/minutes.yaml"
        ) from error
    where = str(path)
    values = _mapping(text, where)
    if isinstance(values.get("config"), dict):  # One that is resolved already.
        return _resolved(values, where, data, assignments)
    file = _validated(_SweepFile, values, where)
    if (file.recipe is None) == (file.config is None):
        raise UserError(f"{where}: name either a recipe or a config file, and not both")
    base = file.recipe or str(path.parent / str(file.config))
    given = [f"{key}={_text(value)}" for key, value in file.overrides.items()]
    try:
        config = resolve_config(base, data or file.data, [*given, *assignments])
    except (ConfigError, UserError) as error:
        if assignments:  # As like as not the mistake is in them.
            raise
        raise type(error)(f"{where}: {error}") from error
    kept = values.keys() - {"recipe", "config", "data", "overrides"}
    sweep = _validated(Sweep, {key: values[key] for key in kept} | {"config": to_dict(config)}, where)
    _check(sweep, where)
    return sweep


def parse_sweep(text: str, where: str) -> Sweep:
    """A sweep from what `sweep_to_yaml` wrote.

    Raises:
        UserError, ConfigError: as `load_sweep`.
    """
    return _resolved(_mapping(text, where), where, None, ())


def sweep_to_yaml(sweep: Sweep) -> str:
    """The sweep as a file that needs no other."""
    return yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(there: Sweep, here: Sweep) -> list[str]:
    """What differs between two sweeps, a phrase for each key."""
    a, b = (flatten(sweep.model_dump(mode="json")) for sweep in (there, here))
    return [
        f"{key} {a.get(key)} -> {b.get(key)}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def _resolved(
    values: dict[str, Any], where: str, data: str | None, assignments: typing.Sequence[str]
) -> Sweep:
    sweep = _validated(Sweep, values, where)
    changes = dict(assignment.partition("=")[::2] for assignment in assignments)
    config = override(from_dict(sweep.config), changes | ({"data.uri": data} if data else {}))
    sweep = sweep.model_copy(update={"config": to_dict(config)})
    _check(sweep, where)
    return sweep


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where} is no YAML: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no sweep: write keys such as recipe, space and objectives")
    return values


def _text(value: Any) -> str:
    """A value of a sweep file as --set takes it."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _validated(cls: type[Any], values: dict[str, Any], where: str) -> Any:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        # A key that is spelt wrong is missing under its right name as well.
        first = next((entry for entry in found if entry["type"] == "extra_forbidden"), found[0])
        place = [str(part) for part in first["loc"] if part not in ("asha", "pbt")]
        path = ".".join(place)
        if first["type"] == "extra_forbidden":
            known = _known_keys(cls, first["loc"][:-1])
            near = difflib.get_close_matches(place[-1], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {path}; {hint}") from error
        if first["type"] == "missing":
            raise UserError(f"{where}: {path} is missing; write it") from error
        reason = first["msg"][0].lower() + first["msg"][1:]
        if first["type"].startswith("union_tag"):
            reason = "write {name: asha, …} or {name: pbt, …}"
        raise UserError(f"{where}: {path} is {first['input']!r}: {reason}") from error


def _known_keys(cls: type[Any], loc: tuple[Any, ...]) -> list[str]:
    """The keys of the section at `loc`, the path of a validation error."""
    for part in loc:
        sections = {"asha": Asha, "pbt": Pbt, "objectives": Objective}
        if part in sections:
            cls = sections[part]
        elif part in cls.model_fields:
            kinds = [cls.model_fields[part].annotation]
            cls = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, _Section)), cls)
    return list(cls.model_fields)


def _check(sweep: Sweep, where: str) -> None:
    """Raises `UserError` for keys that cannot go together."""
    try:
        base, space = sweep.base, sweep.points
        space.check(base, sweep.search.seed, sweep.check_split)
        _check_search(sweep)
        _check_objectives(sweep)
        if sweep.forks:
            _check_fork(sweep, space)
        _check_scheduler(sweep, base)
        _check_budget(sweep)
    except ConfigError as error:
        raise UserError(f"{where}: config: {error}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _check_search(sweep: Sweep) -> None:
    parameters, algorithm = sweep.points.parameters, sweep.search.algorithm
    if algorithm == "grid":
        if drawn := [parameter.path for parameter in parameters if parameter.kind != "grid"]:
            raise UserError(f"search: a grid cannot hold {drawn[0]}, which is drawn; give it as a grid too")
    elif sweep.budget.model_dump() == Budget().model_dump() and not isinstance(sweep.scheduler, Pbt):
        raise UserError(f"budget: {algorithm} goes on for ever; give trials, kimg or hours")


def _check_objectives(sweep: Sweep) -> None:
    metrics = [objective.metric for objective in sweep.objectives]
    if twice := [metric for metric in metrics if metrics.count(metric) > 1]:
        raise UserError(f"objectives: {twice[0]} is named twice; take one away")


def _check_budget(sweep: Sweep) -> None:
    least = sweep.scheduler.interval_kimg if isinstance(sweep.scheduler, Pbt) else sweep.trial_kimg
    if sweep.budget.kimg is not None and sweep.budget.kimg < least:
        raise UserError(f"budget: kimg {sweep.budget.kimg:g} is less than a trial has ({least:g}); raise it")


def _check_fork(sweep: Sweep, space: Space) -> None:
    paths = {path for parameter in space.parameters for path in _paths(parameter.path, sweep.cases)}
    for path in sorted(paths):
        if path in _OF_STAGE1 or (path.startswith("model.") and path not in _MODEL_MAY_VARY):
            raise UserError(f"space: {path} is settled by the stage 1 that all share; use stage1: own")
    if sweep.trial_kimg <= 0:
        if sweep.base.model.architecture == "eg3d":
            raise UserError("stage1: EG3D has no stage 2 to vary; use stage1: own")
        raise UserError("stage1: there is no stage 2 to vary; set schedule.stage2_kimg")
    if sweep.stage1 == SHARED and sweep.base.stage1_nimg == 0:
        raise UserError(
            "stage1: there is no stage 1 to share; set schedule.stage1_kimg above 0, or use stage1: own"
        )


def _paths(path: str, cases: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {key for case in cases.values() for key in case} if path == "case" else {path}


def _check_scheduler(sweep: Sweep, base: Config) -> None:
    scheduler = sweep.scheduler
    if scheduler is None:
        return
    if len(sweep.objectives) > 1:
        raise UserError(f"scheduler: {scheduler.name} compares trials by one objective; name one")
    stage2, batch = base.schedule.stage2_kimg, base.schedule.batch
    if isinstance(scheduler, Asha):
        often = base.output.metric_kimg
        if often is None or often > scheduler.grace_kimg:
            raise UserError(
                f"scheduler: asha compares trials from {scheduler.grace_kimg:g} kimg on; set "
                "output.metric_kimg to that or less, so that there is something to compare"
            )
        if scheduler.grace_kimg >= sweep.trial_kimg:
            raise UserError(
                f"scheduler: grace_kimg {scheduler.grace_kimg:g} stops nothing; a trial has "
                f"{sweep.trial_kimg:g} kimg"
            )
        return
    if sweep.search.algorithm != "random":
        raise UserError("scheduler: pbt draws its first generation; use search: {algorithm: random}")
    paths = {path for parameter in sweep.points.parameters for path in _paths(parameter.path, sweep.cases)}
    for path, given in {"seed": "a seed", "schedule.stage2_kimg": "its length"}.items():
        if path in paths:
            raise UserError(f"space: pbt gives each generation {given}; take {path} away")
    count = stage2 / scheduler.interval_kimg
    if round(scheduler.interval_kimg * 1000) % batch or abs(count - round(count)) > 1e-9 or count < 2:
        raise UserError(
            f"scheduler: interval_kimg {scheduler.interval_kimg:g} must part schedule.stage2_kimg "
            f"({stage2:g}) evenly into two or more, in whole batches of {batch}"
        )
