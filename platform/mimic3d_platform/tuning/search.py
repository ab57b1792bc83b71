"""Which trial comes next: a function of the sweep and the trials so far.

Nothing here has a state of its own, so that a sweep which was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mimic3d.config import override
from mimic3d_platform.tuning.records import Trial
from mimic3d_platform.tuning.space import Parameter, Point
from mimic3d_platform.tuning.sweep import Objective, Pbt, Sweep

if TYPE_CHECKING:
    import optuna

WAIT, DONE = "wait", "done"
"""Nothing can start until a running trial has ended; nothing will start any more."""


@dataclass(frozen=True)
class Proposal:
    """The next trial: its point, and for a population its place and whose weights it takes."""

    point: Point
    generation: int = 0
    member: int = 0
    parent: int | None = None


def propose(sweep: Sweep, trials: Sequence[Trial], *, hours: float) -> Proposal | Literal["wait", "done"]:
    """The next trial of a sweep, or why there is none now.

    Args:
        trials: all before it, by index, the running ones too.
        hours: that the trials have taken, pauses left out.
    """
    if isinstance(sweep.scheduler, Pbt):
        proposal = _next_of_population(sweep, sweep.scheduler, trials)
    elif sweep.search.algorithm == "grid":
        points = sweep.points.grid()
        proposal = Proposal(points[len(trials)]) if len(trials) < len(points) else DONE
    elif sweep.search.algorithm == "random" or len(trials) < sweep.search.startup:
        proposal = Proposal(sweep.points.sample(sweep.search.seed, len(trials)))
    else:
        proposal = Proposal(_suggested(sweep, trials))
    return _within_budget(sweep, trials, proposal, hours)


def size(sweep: Sweep) -> int | None:
    """How many trials the sweep will have, where that is known before."""
    if isinstance(sweep.scheduler, Pbt):
        count: int | None = sweep.scheduler.population * generations(sweep)
    else:
        count = len(sweep.points.grid()) if sweep.search.algorithm == "grid" else None
    limit = sweep.budget.trials
    return min(filter(None, (count, limit)), default=None)


def generations(sweep: Sweep) -> int:
    """Of a population: how often the interval goes into stage 2."""
    assert isinstance(sweep.scheduler, Pbt)
    return round(sweep.base.schedule.stage2_kimg / sweep.scheduler.interval_kimg)


def planned_kimg(sweep: Sweep, point: Point, generation: int = 0) -> float:
    """What a trial trains that is not stopped early."""
    if isinstance(sweep.scheduler, Pbt):
        stage2 = sweep.scheduler.interval_kimg
        return stage2 + (0.0 if sweep.forks or generation else sweep.base.schedule.stage1_kimg)
    config = override(sweep.base, sweep.points.overrides(point))
    return (config.total_nimg - (config.stage1_nimg if sweep.forks else 0)) / 1000


def _within_budget(sweep: Sweep, trials: Sequence[Trial], proposal: Any, hours: float) -> Any:
    if not isinstance(proposal, Proposal):
        return proposal
    budget = sweep.budget
    if budget.trials is not None and len(trials) >= budget.trials:
        return DONE
    if budget.hours is not None and hours >= budget.hours:
        return DONE
    if budget.kimg is not None:
        spent = sum(
            trial.kimg if trial.over else planned_kimg(sweep, trial.point, trial.generation)
            for trial in trials
        )
        wanted = planned_kimg(sweep, proposal.point, proposal.generation)
        if spent + wanted > budget.kimg * (1 + 1e-9):
            # A running trial may yet be stopped, and leave some.
            return WAIT if sweep.scheduler and any(not trial.over for trial in trials) else DONE
    return proposal


def _next_of_population(
    sweep: Sweep, pbt: Pbt, trials: Sequence[Trial]
) -> Proposal | Literal["wait", "done"]:
    generation, member = divmod(len(trials), pbt.population)
    if generation >= generations(sweep):
        return DONE
    space, seed = sweep.points, sweep.search.seed
    if generation == 0:
        return Proposal(space.sample(seed, member), 0, member)
    before = trials[(generation - 1) * pbt.population : generation * pbt.population]
    if any(not trial.over for trial in before):
        return WAIT
    ranked = ranking(before, sweep.objectives[0])
    if not ranked:
        return DONE
    mine = before[member]
    count = max(1, math.floor(pbt.quantile * pbt.population))
    best, worst = ranked[:count], ranked[max(count, len(ranked) - count) :]
    if mine in ranked and mine not in worst:
        return Proposal(mine.point, generation, member, mine.index)
    source = random.Random(f"{seed}/{generation}/{member}/exploit")
    donor = source.choice(best)
    point = {
        parameter.path: _explored(parameter, donor.point[parameter.path], pbt, source)
        for parameter in space.parameters
    }
    return Proposal(point, generation, member, donor.index)


def _explored(parameter: Parameter, value: Any, pbt: Pbt, source: random.Random) -> Any:
    """A donor's value drawn anew or perturbed (Jaderberg et al. 2017, sec. 3)."""
    if source.random() < pbt.resample:
        return parameter.sample(source)
    return parameter.perturb(value, source, pbt.factors)


def ranking(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """Those that were measured and did not fail, the best first."""
    scored = [(trial, trial.scores([objective])) for trial in trials if trial.status != "failed"]
    sign = 1 if objective.mode == "min" else -1
    return [trial for trial, scores in sorted((s for s in scores_of(scored)), key=lambda s: sign * s[1])]


def scores_of(scored: Sequence[tuple[Trial, list[float] | None]]) -> list[tuple[Trial, float]]:
    """Pairs of a trial and its first score, where it has one."""
    return [(trial, scores[0]) for trial, scores in scored if scores is not None]


def best_trials(sweep: Sweep, trials: Sequence[Trial]) -> list[Trial]:
    """The best first; with several objectives the Pareto front, ordered by the first objective.

    A trial that was stopped early, or of an earlier generation, has not been trained to the end: it is best
    only where none has.
    """
    whole = [trial for trial in trials if trial.status == "finished"]
    if isinstance(sweep.scheduler, Pbt) and whole:
        last = max(trial.generation for trial in whole)
        whole = [trial for trial in whole if trial.generation == last]
    ranked = ranking(whole or trials, sweep.objectives[0])
    if len(sweep.objectives) == 1:
        return ranked
    scored = [trial for trial in ranked if trial.scores(sweep.objectives) is not None]
    if not scored:
        return []
    front = {trial.number for trial in _study(sweep, scored, seed=0).best_trials}
    return [trial for number, trial in enumerate(scored) if number in front]


def _suggested(sweep: Sweep, trials: Sequence[Trial]) -> Point:
    """What Optuna's TPE asks for, having been told of all trials."""
    study = _study(sweep, trials, seed=sweep.search.seed * 100003 + len(trials))
    parameters = sweep.points.parameters
    asked = study.ask({parameter.path: _distribution(parameter) for parameter in parameters})
    return {
        parameter.path: parameter.values[asked.params[parameter.path]]
        if parameter.is_list
        else asked.params[parameter.path]
        for parameter in parameters
    }


def _study(sweep: Sweep, trials: Sequence[Trial], seed: int) -> optuna.Study:
    """An Optuna study that knows these trials: finished, stopped with what they last had, running, failed."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=seed % 2**32, n_startup_trials=sweep.search.startup, constant_liar=True
    )
    directions = [f"{objective.mode}imize" for objective in sweep.objectives]
    study = optuna.create_study(directions=directions, sampler=sampler)
    parameters = sweep.points.parameters
    for trial in trials:
        scores = trial.scores(sweep.objectives) if trial.over and trial.status != "failed" else None
        single = len(sweep.objectives) == 1
        state = TrialState.FAIL if trial.over else TrialState.RUNNING
        if scores is not None:
            state = TrialState.PRUNED if trial.status == "stopped" and single else TrialState.COMPLETE
        complete = state == TrialState.COMPLETE
        params = {
            p.path: p.values.index(trial.point[p.path]) if p.is_list else trial.point[p.path]
            for p in parameters
        }
        study.add_trial(
            create_trial(
                state=state,
                params=params,
                distributions={p.path: _distribution(p) for p in parameters},
                values=scores if complete else None,
                intermediate_values={trial.nimg: scores[0]}
                if state == TrialState.PRUNED and scores
                else None,
            )
        )
    return study


def _distribution(parameter: Parameter) -> Any:
    """Optuna's of a parameter; a list is drawn by place, since Optuna's categories are scalars."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.is_list:
        return CategoricalDistribution(list(range(len(parameter.values))))
    low, high = parameter.values[:2]
    if parameter.kind in ("int", "logint"):
        return IntDistribution(low, high, log=parameter.kind == "logint")
    step = parameter.values[2] if parameter.kind == "quniform" else None
    return FloatDistribution(low, high, log=parameter.kind == "loguniform", step=step)
