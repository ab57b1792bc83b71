"""The metrics that a sweep goes by, as its runs write them, and whether they will."""

from __future__ import annotations

import difflib

from mimic3d.config import Config
from mimic3d_platform.errors import UserError
from mimic3d_platform.tuning.sweep import Objective, Sweep

FRECHET = "frechet/"


def with_metric_names(sweep: Sweep, network: str) -> Sweep:
    """`frechet/3d` becomes what the runs will call it.

    Args:
        network: the feature extractor that can be had for the Fréchet distance.
    Raises:
        UserError: a metric that no run of the sweep measures.
    """
    known = measured(sweep.base, network)
    named = []
    for objective in sweep.objectives:
        metric = known.get(objective.metric, objective.metric)
        if metric not in known.values():
            near = difflib.get_close_matches(metric, [*known, *known.values()], n=1)
            hint = f"did you mean {near[0]}?" if near else f"they measure {', '.join(known.values())}"
            raise UserError(f"objectives: no trial measures {metric}; {hint}")
        named.append(Objective(metric=metric, mode=objective.mode))
    return sweep.model_copy(update={"objectives": named})


def measured(config: Config, network: str) -> dict[str, str]:
    """What runs measure as they go, by a sweep file's name for it."""
    from mimic3d.evaluation.frechet import frechet_name

    branches = ["2d"] if config.model.branch_2d else []
    branches += ["3d"] if config.model.architecture != "eg3d" else []
    found = {f"{FRECHET}{branch}": frechet_name(network, branch) for branch in branches}
    agreement = [f"{metric}/{branch}" for metric in ("warp_psnr", "warp_share") for branch in branches]
    return found | {metric: metric for metric in agreement}
