"""Proposes the next trial, as a function of the sweep and the trials so far; ranks trials by their results.

Nothing here has a state of its own, so a sweep that was killed and started again proposes the same trials.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimic3d.config import override
from mimic3d_platform.tuning.schema import Objective, Pbt, Sweep
from mimic3d_platform.tuning.space import Parameter, Point, Value
from mimic3d_platform.tuning.trials import Trial

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


class NoProposal(enum.Enum):
    """Why no trial is proposed: one can be only after a running one has ended, or none will be any more."""

    WAIT = "wait"
    DONE = "done"


WAIT, DONE = NoProposal.WAIT, NoProposal.DONE
# With fewer trials, the importance of a parameter says nothing.
FEWEST_FOR_IMPORTANCE = 4


@dataclass(frozen=True)
class Proposal:
    """The next trial: its point, and in a population its place and the trial whose weights it copies."""

    point: Point
    generation: int = 0
    member: int = 0
    parent: int | None = None


def propose(sweep: Sweep, trials: Sequence[Trial], *, hours: float) -> Proposal | NoProposal:
    """The next trial of a sweep, or why there is none now.

    Args:
        trials: all before it, by index, including the running ones.
        hours: that the sweep has been running, without the time between a stop and the next start.
    """
    proposal: Proposal | NoProposal
    if isinstance(sweep.scheduler, Pbt):
        proposal = _next_of_population(sweep, sweep.scheduler, trials)
    elif sweep.search.algorithm == "grid":
        points = sweep.points.grid()
        proposal = Proposal(points[len(trials)]) if len(trials) < len(points) else DONE
    elif sweep.search.algorithm == "random" or len(trials) < sweep.search.startup:
        proposal = Proposal(sweep.points.sample(sweep.search.seed, len(trials)))
    else:
        proposal = Proposal(_tpe_point(sweep, trials))
    if isinstance(proposal, NoProposal):
        return proposal
    return _within_budget(sweep, trials, proposal, hours)


def size(sweep: Sweep) -> int | None:
    """The number of trials of a sweep; None where it is not known before its end."""
    count: int | None
    if isinstance(sweep.scheduler, Pbt):
        count = sweep.scheduler.population * generations(sweep)
    else:
        count = len(sweep.points.grid()) if sweep.search.algorithm == "grid" else None
    limit = sweep.budget.trials
    return min(filter(None, (count, limit)), default=None)


def generations(sweep: Sweep) -> int:
    """The number of a population's generations: intervals in stage 2."""
    assert isinstance(sweep.scheduler, Pbt)
    return round(sweep.base.schedule.stage2_kimg / sweep.scheduler.interval_kimg)


def planned_kimg(sweep: Sweep, point: Point, generation: int = 0) -> float:
    """The kimg that a trial trains if it is not stopped early."""
    if isinstance(sweep.scheduler, Pbt):
        stage2 = sweep.scheduler.interval_kimg
        return stage2 + (0.0 if sweep.shares_stage1 or generation else sweep.base.schedule.stage1_kimg)
    config = override(sweep.base, sweep.points.overrides(point))
    return (config.total_nimg - (config.stage1_nimg if sweep.shares_stage1 else 0)) / 1000


def _within_budget(
    sweep: Sweep, trials: Sequence[Trial], proposal: Proposal, hours: float
) -> Proposal | NoProposal:
    budget = sweep.budget
    if budget.trials is not None and len(trials) >= budget.trials:
        return DONE
    if budget.hours is not None and hours >= budget.hours:
        return DONE
    if budget.kimg is not None:
        spent = sum(
            trial.kimg if trial.ended else planned_kimg(sweep, trial.point, trial.generation)
            for trial in trials
        )
        wanted = planned_kimg(sweep, proposal.point, proposal.generation)
        if spent + wanted > budget.kimg * (1 + 1e-9):
            # A running trial may be stopped early, and leave enough.
            return WAIT if sweep.scheduler and any(not trial.ended for trial in trials) else DONE
    return proposal


def _next_of_population(sweep: Sweep, pbt: Pbt, trials: Sequence[Trial]) -> Proposal | NoProposal:
    generation, member = divmod(len(trials), pbt.population)
    if generation >= generations(sweep):
        return DONE
    space, seed = sweep.points, sweep.search.seed
    if generation == 0:
        return Proposal(space.sample(seed, member), 0, member)
    before = trials[(generation - 1) * pbt.population : generation * pbt.population]
    if any(not trial.ended for trial in before):
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
        parameter.path: _explore(parameter, donor.point[parameter.path], pbt, source)
        for parameter in space.parameters
    }
    return Proposal(point, generation, member, donor.index)


def _explore(parameter: Parameter, value: Value, pbt: Pbt, source: random.Random) -> Value:
    """A donor's value drawn anew or perturbed (Jaderberg et al. 2017, sec. 3)."""
    if source.random() < pbt.resample:
        return parameter.sample(source)
    return parameter.perturb(value, source, pbt.factors)


def ranking(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """The trials that were measured and did not fail, the best first."""
    scored = [
        (scores[0], trial)
        for trial in trials
        if trial.status != "failed" and (scores := trial.scores([objective])) is not None
    ]
    sign = 1 if objective.mode == "min" else -1
    return [trial for _, trial in sorted(scored, key=lambda pair: sign * pair[0])]


def best_trials(sweep: Sweep, trials: Sequence[Trial]) -> list[Trial]:
    """The best trial first; with several objectives the Pareto front, ordered by the first objective.

    Trials that were stopped early, and those of earlier generations, count only where no other has finished.
    """
    finished = [trial for trial in trials if trial.status == "finished"]
    if isinstance(sweep.scheduler, Pbt) and finished:
        last = max(trial.generation for trial in finished)
        finished = [trial for trial in finished if trial.generation == last]
    ranked = ranking(finished or trials, sweep.objectives[0])
    if len(sweep.objectives) == 1:
        return ranked
    scored = [trial for trial in ranked if trial.scores(sweep.objectives) is not None]
    if not scored:
        return []
    front = {trial.number for trial in _study(sweep, scored, seed=0).best_trials}
    return [trial for number, trial in enumerate(scored) if number in front]


def importances(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """By objective, the share of its variance among the trials that each parameter explains.

    fANOVA (Hutter et al. 2014), of the trials that ended without a failure. Empty where there are fewer than
    `FEWEST_FOR_IMPORTANCE` of them, one parameter, or no variance.
    """
    import optuna

    scored = [
        trial for trial in trials if trial.status == "finished" and trial.scores(sweep.objectives) is not None
    ]
    if len(scored) < FEWEST_FOR_IMPORTANCE or len(sweep.points.parameters) < 2:
        return {}
    study = _study(sweep, scored, seed=0)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = {}
    for number, objective in enumerate(sweep.objectives):
        values = [trial.metrics[objective.metric] for trial in scored]
        if max(values) > min(values):
            shares = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=_value_number(number)
            )
            found[objective.metric] = dict(shares)
    return found


def _value_number(number: int) -> Callable[[optuna.trial.FrozenTrial], float]:
    return lambda trial: float(trial.values[number])


def _tpe_point(sweep: Sweep, trials: Sequence[Trial]) -> Point:
    """The point that Optuna's TPE suggests after all these trials."""
    study = _study(sweep, trials, seed=sweep.search.seed * 100003 + len(trials))
    parameters = sweep.points.parameters
    suggested = study.ask({parameter.path: _distribution(parameter) for parameter in parameters}).params
    return {
        parameter.path: parameter.values[suggested[parameter.path]]
        if parameter.is_list
        else suggested[parameter.path]
        for parameter in parameters
    }


def _study(sweep: Sweep, trials: Sequence[Trial], seed: int) -> optuna.Study:
    """An Optuna study of these trials: finished, stopped with their last result, running, failed."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(
        seed=seed % 2**32, n_startup_trials=sweep.search.startup, constant_liar=True
    )
    minimize, maximize = optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE
    directions = [minimize if objective.mode == "min" else maximize for objective in sweep.objectives]
    study = optuna.create_study(directions=directions, sampler=sampler)
    for trial in trials:
        study.add_trial(_frozen_trial(sweep, trial))
    return study


def _frozen_trial(sweep: Sweep, trial: Trial) -> optuna.trial.FrozenTrial:
    """A trial as Optuna knows it. With several objectives Optuna has no stopped trials: they are finished."""
    from optuna.trial import TrialState, create_trial

    parameters = sweep.points.parameters
    scores = trial.scores(sweep.objectives) if trial.ended and trial.status != "failed" else None
    state, values, intermediate = TrialState.FAIL if trial.ended else TrialState.RUNNING, None, None
    if scores is not None and trial.status == "stopped" and len(scores) == 1:
        state, intermediate = TrialState.PRUNED, {trial.nimg: scores[0]}
    elif scores is not None:
        state, values = TrialState.COMPLETE, scores
    return create_trial(
        state=state,
        params={
            p.path: p.values.index(trial.point[p.path]) if p.is_list else trial.point[p.path]
            for p in parameters
        },
        distributions={p.path: _distribution(p) for p in parameters},
        values=values,
        intermediate_values=intermediate,
    )


def _distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's distribution of a parameter; of a list it draws the index, as its categories are scalars."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.is_list:
        return CategoricalDistribution(list(range(len(parameter.values))))
    low, high = parameter.values[:2]
    if parameter.kind in ("int", "logint"):
        return IntDistribution(low, high, log=parameter.kind == "logint")
    step = parameter.values[2] if parameter.kind == "quniform" else None
    return FloatDistribution(low, high, log=parameter.kind == "loguniform", step=step)
