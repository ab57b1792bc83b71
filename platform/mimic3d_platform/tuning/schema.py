"""The keys of a sweep file: typed, closed and complete, as a config is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from mimic3d.config import Config, from_dict
from mimic3d_platform.tuning.space import Space, parse_space

SHARED, OWN = "shared", "own"


class Section(BaseModel):
    """A part of a sweep file. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Objective(Section):
    """A metric and its better direction.

    `frechet/3d` stands for the Fréchet distance with whatever extractor the runs use.
    """

    metric: str = Field(min_length=1)
    mode: Literal["min", "max"]


class SearchMethod(Section):
    """The choice of points in the space; population-based training draws its first by `random`.

    Attributes:
        startup: random points before TPE has something to learn from.
    """

    algorithm: Literal["grid", "random", "tpe"] = "random"
    seed: int = Field(default=0, ge=0)
    startup: int = Field(default=8, ge=1)


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2020).

    At `grace_kimg` · `reduction`ⁿ a trial is stopped unless it is among the best 1 / `reduction` there.
    """

    name: Literal["asha"]
    grace_kimg: float = Field(gt=0)
    reduction: int = Field(default=3, ge=2)


class Pbt(Section):
    """Population based training (Jaderberg et al. 2017).

    After each interval the worst `quantile` of the population copies weights and values of the best.

    Attributes:
        resample: the probability that a copied value is drawn anew instead of perturbed.
        factors: one of which multiplies a perturbed value.
    """

    name: Literal["pbt"]
    population: int = Field(ge=2)
    interval_kimg: float = Field(gt=0)
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    resample: float = Field(default=0.25, ge=0, le=1)
    factors: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25)


class Budget(Section):
    """Limits beyond which no trial starts; running trials end normally. None is no limit.

    A shared stage 1 is not counted.
    """

    trials: int | None = Field(default=None, ge=1)
    kimg: float | None = Field(default=None, gt=0)
    hours: float | None = Field(default=None, gt=0)


class TrialOptions(Section):
    """Resources, limits and repetitions of trials.

    Attributes:
        workers: of Ray Train, for each trial.
        concurrency: trials at once; as many as the cluster has room for when None.
        failures: attempts after the first, each of which resumes from the trial's last checkpoint.
    """

    workers: int = Field(default=1, ge=1)
    concurrency: int | None = Field(default=None, ge=1)
    failures: int = Field(default=1, ge=0)


class SweepKeys(Section):
    """The keys that a sweep file has as it is written and when its config is resolved.

    Attributes:
        stage1: `shared`: the sweep trains it once; `own`: each trial trains it; else the URI of a checkpoint,
            of a registered model or of a run.
        space: {path: {kind: values}}, see `space`.
        cases: overrides of the config by name, tried as one more grid.
    """

    stage1: str = Field(default=OWN, min_length=1)
    space: dict[str, Any] = Field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = Field(default_factory=dict)
    objectives: list[Objective] = Field(min_length=1)
    search: SearchMethod = SearchMethod()
    scheduler: Asha | Pbt | None = Field(default=None, discriminator="name")
    budget: Budget = Budget()
    trials: TrialOptions = TrialOptions()


class SweepFile(SweepKeys):
    """A sweep file as it is written: its config is a recipe or a file, with overrides."""

    recipe: str | None = None
    config: str | None = None
    data: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)


class Sweep(SweepKeys):
    """A sweep whose config is resolved, so that it depends on no other file.

    Attributes:
        config: the config that all trials share, as a dictionary.
    """

    config: dict[str, Any]

    @property
    def base(self) -> Config:
        """The config that all trials share."""
        return from_dict(self.config)

    @property
    def points(self) -> Space:
        """The search space."""
        return parse_space(self.space, self.cases)

    @property
    def shares_stage1(self) -> bool:
        """Whether all trials start from one stage 1."""
        return self.stage1 != OWN

    @property
    def trial_kimg(self) -> float:
        """The kimg of a trial that keeps the base's lengths and is not stopped early."""
        base = self.base
        return (base.total_nimg - (base.stage1_nimg if self.shares_stage1 else 0)) / 1000
