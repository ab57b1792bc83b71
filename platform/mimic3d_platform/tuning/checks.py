"""Checks of a sweep before anything starts: that its keys go together, and that its trials can run here."""

from __future__ import annotations

from collections.abc import Mapping

from mimic3d.config import Config, ConfigError
from mimic3d.config.shares import can_share
from mimic3d_platform.cluster.resources import Processors
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.metric_names import metrics_of_training, require_measured
from mimic3d_platform.tuning.schema import SHARED, Asha, Budget, Objective, Pbt, Sweep
from mimic3d_platform.tuning.space import CASE

# Keys that a shared stage 1 has settled for all trials.
_OF_STAGE1 = ("data.uri", "schedule.stage1_kimg", "start")
_MODEL_MAY_VARY = ("model.precision",)


def check_sweep(sweep: Sweep, where: str) -> None:
    """Checks that the keys of a sweep go together, and that its whole space makes configs.

    Raises:
        UserError: what is wrong; `where` names the sweep's file.
    """
    try:
        sweep.points.check(sweep.base, sweep.search.seed, lambda config: _check_split(sweep, config))
        _check_search(sweep)
        _check_objectives(sweep)
        if sweep.shares_stage1:
            _check_shared_stage1(sweep)
        _check_scheduler(sweep)
        _check_budget(sweep)
    except ConfigError as error:
        raise UserError(f"{where}: config: {error}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def with_metric_names(sweep: Sweep, network: str) -> Sweep:
    """The sweep with its objectives under the names that its runs log, such as `fid_inception2015/3d`.

    Args:
        network: the feature network of the Fréchet distance.
    Raises:
        UserError: a metric that no trial measures.
    """
    known = metrics_of_training(sweep.base, network)
    objectives = []
    for objective in sweep.objectives:
        metric = require_measured(objective.metric, known, "objectives")
        objectives.append(Objective(metric=metric, mode=objective.mode))
    return sweep.model_copy(update={"objectives": objectives})


def concurrency(sweep: Sweep, cluster: Mapping[str, float]) -> int:
    """The number of trials that run at once.

    Args:
        cluster: Ray's resources, such as {"CPU": 8.0}.
    Raises:
        UserError: the cluster is too small for a trial, or for as many at once as the sweep asks for: trials
            would hold the resources that the workers of others wait for.
    """
    processors = Processors.of(cluster)
    kind, have = processors.kind, processors.count
    workers, asked = sweep.trials.workers, sweep.trials.concurrency
    most = have // workers
    if most < 1:
        raise UserError(
            f"a trial of {workers} workers needs as many {kind}s, the cluster has {have}: set trials.workers "
            f"to {max(have, 1)} or less"
        )
    if asked is not None and asked > most:
        raise UserError(
            f"{asked} trials of {workers} workers need {asked * workers} {kind}s, the cluster has {have}: "
            f"some would wait for others for ever; set trials.concurrency to {most} or less"
        )
    return asked or most


def _check_split(sweep: Sweep, config: Config) -> None:
    """Raises `ConfigError` unless the workers of a trial can share its batches."""
    batch, accumulate, workers = config.schedule.batch, config.schedule.accumulate, sweep.trials.workers
    if not can_share(batch, workers, accumulate):
        micro = f" in {accumulate} parts" if accumulate > 1 else ""
        raise ConfigError(
            f"schedule.batch {batch}{micro} cannot be split among {workers} workers: change trials.workers"
        )


def _check_search(sweep: Sweep) -> None:
    algorithm = sweep.search.algorithm
    if algorithm == "grid":
        if drawn := [parameter.path for parameter in sweep.points.parameters if parameter.kind != "grid"]:
            raise UserError(f"search: a grid cannot hold {drawn[0]}, which is drawn; give it as a grid too")
    elif sweep.budget == Budget() and not isinstance(sweep.scheduler, Pbt):
        raise UserError(f"budget: {algorithm} goes on for ever; give trials, kimg or hours")


def _check_objectives(sweep: Sweep) -> None:
    metrics = [objective.metric for objective in sweep.objectives]
    if twice := [metric for metric in metrics if metrics.count(metric) > 1]:
        raise UserError(f"objectives: {twice[0]} is named twice; take one away")


def _check_shared_stage1(sweep: Sweep) -> None:
    for path in sorted(_varied(sweep)):
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


def _check_scheduler(sweep: Sweep) -> None:
    if sweep.scheduler is None:
        return
    if len(sweep.objectives) > 1:
        raise UserError(f"scheduler: {sweep.scheduler.name} compares trials by one objective; name one")
    if isinstance(sweep.scheduler, Asha):
        _check_asha(sweep, sweep.scheduler)
    else:
        _check_pbt(sweep, sweep.scheduler)


def _check_asha(sweep: Sweep, asha: Asha) -> None:
    metric_kimg = sweep.base.output.metric_kimg
    if metric_kimg is None or metric_kimg > asha.grace_kimg:
        raise UserError(
            f"scheduler: asha compares trials from {asha.grace_kimg:g} kimg on; set output.metric_kimg to "
            "that or less, so that there is something to compare"
        )
    if asha.grace_kimg >= sweep.trial_kimg:
        raise UserError(
            f"scheduler: grace_kimg {asha.grace_kimg:g} stops nothing; a trial has {sweep.trial_kimg:g} kimg"
        )


def _check_pbt(sweep: Sweep, pbt: Pbt) -> None:
    if sweep.search.algorithm != "random":
        raise UserError("scheduler: pbt draws its first generation; use search: {algorithm: random}")
    for path, given in {"seed": "a seed", "schedule.stage2_kimg": "its length"}.items():
        if path in _varied(sweep):
            raise UserError(f"space: pbt gives each generation {given}; take {path} away")
    stage2, batch = sweep.base.schedule.stage2_kimg, sweep.base.schedule.batch
    count = stage2 / pbt.interval_kimg
    if round(pbt.interval_kimg * 1000) % batch or abs(count - round(count)) > 1e-9 or count < 2:
        raise UserError(
            f"scheduler: interval_kimg {pbt.interval_kimg:g} must divide schedule.stage2_kimg ({stage2:g}) "
            f"evenly into two or more, in whole batches of {batch}"
        )


def _check_budget(sweep: Sweep) -> None:
    least = sweep.scheduler.interval_kimg if isinstance(sweep.scheduler, Pbt) else sweep.trial_kimg
    if sweep.budget.kimg is not None and sweep.budget.kimg < least:
        raise UserError(f"budget: kimg {sweep.budget.kimg:g} is less than a trial has ({least:g}); raise it")


def _varied(sweep: Sweep) -> set[str]:
    """The config's keys that differ between trials, those of cases among them."""
    of_cases = {path for overrides in sweep.cases.values() for path in overrides}
    return of_cases | {path for path in sweep.points.paths if path != CASE}
