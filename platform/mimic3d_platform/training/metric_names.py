"""The names of the metrics that a run measures while it trains."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from mimic3d.config import Config
from mimic3d_platform.errors import UserError


def metrics_of_training(config: Config, network: str) -> dict[str, str]:
    """The metrics of a run, by the names that a sweep file may use for them, such as `frechet/3d`.

    Args:
        network: the feature network of the Fréchet distance.
    """
    from mimic3d.evaluation.frechet import frechet_name
    from mimic3d.evaluation.registry import TRAINING_VIEWS
    from mimic3d.features.registry import EXTRACTORS

    branches = ["2d"] if config.model.branch_2d else []
    branches += ["3d"] if config.model.architecture != "eg3d" else []
    metrics = {f"frechet/{branch}": frechet_name(EXTRACTORS[network].name, branch) for branch in branches}
    agreement = [f"{metric.kind}/{branch}" for metric in TRAINING_VIEWS for branch in branches]
    return metrics | {metric: metric for metric in agreement}


def require_measured(metric: str, known: Mapping[str, str], where: str) -> str:
    """The name under which runs log a metric.

    Args:
        metric: that name, or a key of `known`.
        known: as `metrics_of_training`.
        where: what names the metric, for the message.
    Raises:
        UserError: no run measures it; says which they measure.
    """
    name = known.get(metric, metric)
    if name in known.values():
        return name
    near = difflib.get_close_matches(name, [*known, *known.values()], n=1)
    hint = f"did you mean {near[0]}?" if near else f"they measure {', '.join(known.values())}"
    raise UserError(f"{where}: no run measures {name}; {hint}")
