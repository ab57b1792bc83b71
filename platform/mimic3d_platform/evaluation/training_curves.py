"""The metrics that a generator's training logged to MLflow, for its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimic3d_platform import storage, tracking
from mimic3d_platform.evaluation.measured import Curves
from mimic3d_platform.evaluation.report import CURVES
from mimic3d_platform.tracking.server import client, tracking_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def training_curves(uri: str, version: ModelVersion | None, runs_uri: str) -> Curves:
    """The curves of the run that trained a registered version, or whose folder or checkpoint `uri` is.

    Returns:
        Nothing for other generators and for images.
    Raises:
        UserError: MLflow does not answer or refuses.
    """
    with tracking_errors("read the metrics of a run from"):
        run_id = version.run_id if version is not None else _run_in(uri, runs_uri)
        if not run_id:
            return {}
        names = sorted(name for name in client().get_run(run_id).data.metrics if name.startswith(CURVES))
        return {
            name: sorted(
                {point.step: point.value for point in client().get_metric_history(run_id, name)}.items()
            )
            for name in names
            if not name.endswith(("_low", "_high"))
        }


def _run_in(uri: str, runs_uri: str) -> str | None:
    """The MLflow run of the run whose folder holds `uri`; None where there is none."""
    root = storage.absolute(runs_uri).rstrip("/") + "/"
    experiment = client().get_experiment_by_name(tracking.EXPERIMENT)
    if not storage.absolute(uri).startswith(root) or experiment is None:
        return None
    name = storage.absolute(uri).removeprefix(root).partition("/")[0]
    run = tracking.find_run(experiment.experiment_id, name)
    return None if run is None else str(run.info.run_id)
