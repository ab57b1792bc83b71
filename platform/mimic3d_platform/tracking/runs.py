"""MLflow runs: started or found again, closed, looked up.

The driver makes the runs and hands their ids to the workers; rank 0 logs (`run_logger`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from mimic3d_platform.errors import UserError
from mimic3d_platform.tracking.server import (
    check_tracking,
    client,
    in_environment,
    shown,
    tracking_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["check_tracking", "find_run", "finish_run", "run_url", "start_or_resume_run"]

# The experiment of all runs of this project.
EXPERIMENT = "mimic3d"
# MLflow's own limits.
MAX_PARAM_LENGTH, MAX_KEY_LENGTH, MAX_PARAMS_PER_BATCH = 6000, 250, 100
# A run is found again by this tag: the name that MLflow shows can be edited there.
RUN_NAME_TAG = "mimic3d.run_name"
PARENT_TAG = "mlflow.parentRunId"


def start_or_resume_run(
    experiment: str,
    run_name: str,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
) -> str:
    """The id of the run `run_name`, found again if an earlier start made it, else made.

    Args:
        experiment: made unless it is there.
        run_name: unique within the experiment, or within the parent.
        params: may be nested, as a config is; keys become dotted paths. What a resumed run has stays, since
            MLflow's parameters cannot change. `SecretStr` values are left out, long ones cut.
        tags: set anew on a resumed run.
        parent_run_id: makes the run a child of that one.
    Raises:
        UserError: MLflow does not answer or refuses, or the experiment was deleted there.
    """
    from mlflow.entities import Param, RunTag

    mlflow_client = client()
    with tracking_errors(f"start the run {run_name!r} in"):
        experiment_id = _experiment(mlflow_client, experiment)
        own_tags = {RUN_NAME_TAG: run_name, **(tags or {})}
        if parent_run_id:
            own_tags[PARENT_TAG] = parent_run_id
        run = find_run(experiment_id, run_name, parent_run_id)
        known: Mapping[str, str] = {}
        if run is None:
            run = mlflow_client.create_run(experiment_id, run_name=run_name, tags=own_tags)
        else:
            known = run.data.params
            mlflow_client.update_run(run.info.run_id, status="RUNNING")
            batch = [RunTag(key, str(value)) for key, value in own_tags.items()]
            mlflow_client.log_batch(run.info.run_id, tags=batch)
        flat = flat_params(params or {})
        new = [Param(key, value) for key, value in flat.items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS_PER_BATCH):
            mlflow_client.log_batch(run.info.run_id, params=new[start : start + MAX_PARAMS_PER_BATCH])
        return str(run.info.run_id)


def find_run(experiment_id: str, run_name: str, parent_run_id: str | None = None) -> Any | None:
    """The newest run that `start_or_resume_run` made under this name and parent, or None."""
    quote = '"' if "'" in run_name else "'"
    if quote in run_name:
        raise UserError(f"run name {run_name!r}: use one kind of quotation mark at most")
    clause = f"tags.`{RUN_NAME_TAG}` = {quote}{run_name}{quote}"
    if parent_run_id:
        clause += f" and tags.`{PARENT_TAG}` = '{parent_run_id}'"
    runs = client().search_runs([experiment_id], clause, order_by=["attributes.start_time DESC"])
    return next((run for run in runs if run.data.tags.get(PARENT_TAG) == parent_run_id), None)


def finish_run(run_id: str, status: str = "FINISHED") -> None:
    """Close a run: `FINISHED`, `FAILED` or `KILLED`."""
    with tracking_errors("close a run in"):
        client().set_terminated(run_id, status)


def run_url(run_id: str) -> str | None:
    """The run's page; None where MLflow is not a server."""
    uri = shown(tracking_uri()).rstrip("/")
    if not uri.startswith("http"):
        return None
    with tracking_errors("look up a run in"):
        experiment_id = client().get_run(run_id).info.experiment_id
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}"


def download_artifacts(run_id: str, folder: str, destination: str | Path) -> Path:
    """Copies the artifacts below `folder` of a run into `destination`, which is made if need be."""
    import mlflow

    destination = Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    with (
        tracking_errors("download artifacts from"),
        in_environment(),
        tempfile.TemporaryDirectory(dir=destination) as partial,
    ):
        fetched = Path(
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=folder, dst_path=partial)
        )
        for file in fetched.iterdir():
            file.replace(destination / file.name)
    return destination


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as MLflow's parameters: dotted keys, values as text cut to its limit, no secrets."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{path}.")
        elif not isinstance(value, SecretStr):
            text = shown(value) if isinstance(value, str) and "://" in value else str(value)
            ending = f"… ({len(text)} characters)"
            cut = text[: MAX_PARAM_LENGTH - len(ending)] + ending
            key = re.sub(r"[^\w\-. /:]", "_", path, flags=re.ASCII)[-MAX_KEY_LENGTH:]
            flat[key] = text if len(text) <= MAX_PARAM_LENGTH else cut
    return flat


def _experiment(mlflow_client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        try:
            return mlflow_client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = mlflow_client.get_experiment_by_name(name)  # Another process was quicker.
    if found.lifecycle_stage == "deleted":
        raise UserError(f"the experiment {name!r} was deleted in MLflow; restore it there or name another")
    return str(found.experiment_id)
