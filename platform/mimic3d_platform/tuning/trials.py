"""What one trial runs: a training of its own, started from the weights that all trials share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mimic3d.config import Config, from_dict, override
from mimic3d_platform.tuning.records import Trial
from mimic3d_platform.tuning.sweep import Pbt, Sweep

FINISHED, HISTORY = "finished", "history"
"""In the last report: the training has reached its end; all that it measured, by images."""
KNOWN = "known"
"""In a report that was made before the sweep was killed."""


def stage1_config(sweep: Sweep) -> Config:
    """The run that all trials fork from: the base, without a second stage."""
    return override(sweep.base, {"schedule.stage2_kimg": 0.0})


def trial_config(sweep: Sweep, trial: Trial, stage1_uri: str, trials: Sequence[Trial]) -> Config:
    """The whole config of a trial.

    Args:
        stage1_uri: the checkpoint that trials fork from; "" where each trains its own.
        trials: at least the trial's parent.
    """
    changes = sweep.points.overrides(trial.point)
    if stage1_uri:
        changes |= {"start": stage1_uri, "schedule.stage1_kimg": 0.0}
    if isinstance(sweep.scheduler, Pbt):
        # A generation is a run of its own. Another seed: it must not see its parent's images again.
        changes |= {
            "schedule.stage2_kimg": sweep.scheduler.interval_kimg,
            "seed": sweep.base.seed + trial.generation,
        }
        if trial.parent is not None:
            [parent] = (other for other in trials if other.index == trial.parent)
            changes |= {"start": parent.checkpoint_uri, "schedule.stage1_kimg": 0.0}
    return override(sweep.base, changes)


def run_trial(assignment: dict[str, Any], job: dict[str, Any]) -> None:
    """The function that Ray Tune runs for a trial; it holds no CPU, its Ray Train workers do.

    Every measurement of the run reaches Tune as a report, the result as the last one.

    Args:
        assignment: "config", "name", "tags" for MLflow, and "replay": reports which the scheduler has to see
            again after the sweep was killed. Without a config the trial is over: nothing is trained.
        job: "runs_uri", "workers", "parent_run_id" of the sweep in MLflow, "environment" (a reference in a
            list, so that Ray leaves it to us to fetch).
    """
    import ray
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    for report in assignment["replay"]:
        tune.report({**report, KNOWN: True})
    if not assignment["config"]:
        return
    os.environ.update(ray.get(job["environment"][0]))
    from mimic3d_platform.training.run import train

    result = train(
        from_dict(assignment["config"]),
        assignment["name"],
        runs_uri=job["runs_uri"],
        workers=job["workers"],
        parent_run_id=job["parent_run_id"],
        tags=assignment["tags"],
        callbacks=[TuneReportCallback()],
    )
    last = max(result.metrics, default=0)
    tune.report(
        {
            FINISHED: True,
            "nimg": last,
            "seconds": result.seconds,
            "checkpoint_uri": result.checkpoint_uri,
            "run_id": result.run_id,
            HISTORY: {str(nimg): metrics for nimg, metrics in result.metrics.items()},
            **result.metrics.get(last, {}),
        }
    )
