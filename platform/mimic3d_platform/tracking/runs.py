"""Starts MLflow runs or finds them again, closes them, looks them up.

The driver of a training starts its runs and hands their ids to the workers; `logger` logs to them.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.uris import without_login
from mimic3d_platform.tracking.server import (
    client,
    conflict_suppressed,
    in_environment,
    tracking_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# The experiment of all runs of this project.
EXPERIMENT = "mimic3d"
# MLflow's own limits.
MAX_PARAM_LENGTH, MAX_KEY_LENGTH, MAX_PARAMS_PER_BATCH = 6000, 250, 100
# The most runs that one search returns.
_MAX_RUNS = 50000
# A run is found again by this tag: the name that MLflow shows can be edited there.
RUN_NAME_TAG = "mimic3d.run_name"
PARENT_TAG = "mlflow.parentRunId"
# Without it MLflow's page guesses what an experiment is for, and may open a run on its page of traces.
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"


def start_or_resume_run(
    experiment: str,
    run_name: str,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
    *,
    reopen: bool = True,
) -> str:
    """The id of the run `run_name`: of an existing one if there is one, else of a new one.

    Args:
        experiment: created if it does not exist.
        run_name: unique within the experiment, or within the parent.
        params: may be nested, as a config is; keys become dotted paths. Those that a run has already stay,
            since MLflow's parameters cannot change. `SecretStr` values are left out, long ones cut.
        tags: replace those of an existing run.
        parent_run_id: makes the run a child of that one.
        reopen: whether a run that has finished is running again; else it keeps its end.
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
            if reopen or run.info.status != "FINISHED":
                mlflow_client.update_run(run.info.run_id, status="RUNNING")
            batch = [RunTag(key, str(value)) for key, value in own_tags.items()]
            mlflow_client.log_batch(run.info.run_id, tags=batch)
        flat = flat_params(params or {})
        new = [Param(key, value) for key, value in flat.items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS_PER_BATCH):
            mlflow_client.log_batch(run.info.run_id, params=new[start : start + MAX_PARAMS_PER_BATCH])
        return str(run.info.run_id)


def find_run(experiment_id: str, run_name: str, parent_run_id: str | None = None) -> Run | None:
    """The newest run that `start_or_resume_run` started under this name and parent, or None."""
    quote = '"' if "'" in run_name else "'"
    if quote in run_name:
        raise UserError(f"run name {run_name!r}: use at most one kind of quotation mark")
    clause = f"tags.`{RUN_NAME_TAG}` = {quote}{run_name}{quote}"
    if parent_run_id:
        clause += f" and tags.`{PARENT_TAG}` = '{parent_run_id}'"
    runs = client().search_runs([experiment_id], clause, order_by=["attributes.start_time DESC"])
    return next((run for run in runs if run.data.tags.get(PARENT_TAG) == parent_run_id), None)


def children_of(run_id: str) -> list[Run]:
    """The runs that have this one as their parent.

    Raises:
        UserError: MLflow does not answer or refuses.
    """
    with tracking_errors("look up the runs below a run in"):
        experiment_id = client().get_run(run_id).info.experiment_id
        clause = f"tags.`{PARENT_TAG}` = '{run_id}'"
        return list(client().search_runs([experiment_id], clause, max_results=_MAX_RUNS))


def finish_run(run_id: str, status: str = "FINISHED") -> None:
    """Closes a run: `FINISHED`, `FAILED` or `KILLED` (by its user); one that has finished stays as it is."""
    with tracking_errors("close a run in"):
        if client().get_run(run_id).info.status != "FINISHED":
            client().set_terminated(run_id, status)


@contextlib.contextmanager
def closed_after(run_id: str) -> Iterator[None]:
    """Closes a run after the block: `FINISHED`, or `FAILED` if the block raises."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(UserError):
            finish_run(run_id, "FAILED")
        raise
    finish_run(run_id)


def run_url(run_id: str) -> str | None:
    """The address of a run's page; None where MLflow is not a server."""
    uri = without_login(tracking_uri()).rstrip("/")
    if not uri.startswith("http"):
        return None
    with tracking_errors("look up a run in"):
        experiment_id = client().get_run(run_id).info.experiment_id
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}"


def download_artifacts(run_id: str, folder: str, destination: str | Path) -> Path:
    """Copies the artifacts below `folder` of a run into `destination`, creating that if need be."""
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


def flat_params(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested mappings as MLflow parameters: dotted keys, values as text cut to its limit, without secrets."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flat_params(value, f"{path}.")
        elif not isinstance(value, SecretStr):
            text = without_login(value) if isinstance(value, str) and "://" in value else str(value)
            ending = f"… ({len(text)} characters)"
            cut = text[: MAX_PARAM_LENGTH - len(ending)] + ending
            key = re.sub(r"[^\w\-. /:]", "_", path, flags=re.ASCII)[-MAX_KEY_LENGTH:]
            flat[key] = text if len(text) <= MAX_PARAM_LENGTH else cut
    return flat


def _experiment(mlflow_client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = mlflow_client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return mlflow_client.create_experiment(name, tags={_KIND_TAG: _KIND})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = mlflow_client.get_experiment_by_name(name)  # Another process was quicker.
        assert experiment is not None
    if experiment.lifecycle_stage == "deleted":
        raise UserError(f"the experiment {name!r} was deleted in MLflow; restore it there or name another")
    if _KIND_TAG not in experiment.tags:
        with conflict_suppressed():
            mlflow_client.set_experiment_tag(experiment.experiment_id, _KIND_TAG, _KIND)
    return str(experiment.experiment_id)
