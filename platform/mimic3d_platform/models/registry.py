"""The model registry in MLflow: names of models, their versions and aliases, and the metrics of a version."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.uris import without_login
from mimic3d_platform.tracking.server import (
    check_tracking,
    client,
    tracking_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

# Tags of a version. The first is the SHA-256 of its list of digests, the second that of the generator's own
# files, which several versions may share.
DIGEST_TAG = "mimic3d.digest"
GENERATOR_TAG = "mimic3d.generator"
FORMAT_TAG = "mimic3d.format"
MODEL_ID_TAG = "mimic3d.model_id"
# The layout of a version's files; a reader refuses a later one.
FORMAT = 1
# What MLflow's models, or a `models:/` URI, cannot have in a name, and the length of its database's column.
_NOT_IN_NAMES = "/:.%\"'@?#"
_MAX_NAME_LENGTH, _MAX_ALIAS_LENGTH = 250, 255

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w.\-]+)|/(?P<version>\d+))")
# A logged model's id in the source of a version: `models:/m-…`, or the place of its artifacts.
_MODEL_ID = re.compile(r"(?:^models:|/models)/(m-\w+)(?:/artifacts/?)?$")


def is_registered(uri: str) -> bool:
    """Whether `uri` is one of the registry, `models:/…`."""
    return uri.startswith("models:")


def check_registration(name: str | None, alias: str | None = None) -> None:
    """Refuses a model's name and an alias that MLflow could not take; asks no server.

    Call it before whatever makes the model: MLflow itself would refuse at the end.

    Args:
        name: None where nothing is to be registered.
    Raises:
        UserError: says which characters, or which alias, are not allowed.
    """
    if name is None:
        if alias is not None:
            raise UserError(f"--alias {alias} is given to a registered version: give --register NAME too")
        return
    wrong = sorted({letter for letter in name if letter in _NOT_IN_NAMES or not letter.isprintable()})
    if not name.strip() or name != name.strip() or wrong:
        found = f" (it has {' '.join(map(repr, wrong))})" if wrong else ""
        raise UserError(
            f"model name {name!r}: it must not be empty, begin or end with a space, nor contain any of "
            f"{' '.join(_NOT_IN_NAMES)}{found}; use letters, digits, '-' and '_', such as cars-v2"
        )
    if len(name) > _MAX_NAME_LENGTH:
        raise UserError(f"model name of {len(name)} characters: use {_MAX_NAME_LENGTH} at most")
    if alias is None:
        return
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UserError(
            f"alias {alias!r}: MLflow reserves latest and v1, v2, … for itself; use another, such as champion"
        )
    if not re.fullmatch(r"[\w\-]+", alias) or len(alias) > _MAX_ALIAS_LENGTH:
        raise UserError(
            f"alias {alias!r}: use up to {_MAX_ALIAS_LENGTH} letters, digits, '-' and '_', such as champion"
        )


def version_of(uri: str) -> ModelVersion:
    """The registered version that `models:/<name>@<alias>` or `models:/<name>/<version>` names.

    Raises:
        UserError: not such a URI, no such model, alias or version, or MLflow away.
    """
    parts = _MODEL_URI.fullmatch(uri)
    if parts is None:
        raise UserError(
            f"{uri!r} names no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    check_tracking()
    mlflow_client = client()
    from mlflow.exceptions import MlflowException

    with tracking_errors(f"look up {uri} in"):
        try:
            if parts["alias"]:
                return mlflow_client.get_model_version_by_alias(parts["name"], parts["alias"])
            return mlflow_client.get_model_version(parts["name"], parts["version"])
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        what = f"alias {parts['alias']!r}" if parts["alias"] else f"version {parts['version']}"
        raise UserError(_not_found(mlflow_client, parts["name"], what))


def version_uri(version: ModelVersion) -> str:
    """`models:/NAME/VERSION`, which names the same version however aliases move."""
    return f"models:/{version.name}/{version.version}"


def registered_models() -> list[RegisteredModel]:
    """All models of the registry, by name.

    Raises:
        UserError: MLflow is away or refuses.
    """
    check_tracking()
    mlflow_client, token = client(), None
    found: list[RegisteredModel] = []
    with tracking_errors("list the models of"):
        while True:
            page = mlflow_client.search_registered_models(max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda model: str(model.name))


def versions_of(name: str) -> list[ModelVersion]:
    """The versions of a model, oldest first.

    Raises:
        UserError: no such model, or MLflow away.
    """
    check_registration(name)
    check_tracking()
    mlflow_client = client()
    with tracking_errors(f"list the versions of {name!r} in"):
        found: list[ModelVersion] = []
        token = None
        while True:
            page = mlflow_client.search_model_versions(f"name = '{name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                break
        if not found and name not in {model.name for model in registered_models()}:
            raise UserError(_not_found(mlflow_client, name, "version"))
    return sorted(found, key=lambda version: int(version.version))


def aliases_of(name: str) -> dict[str, int]:
    """The aliases of a model, each with the version that has it."""
    with tracking_errors(f"look up {name!r} in"):
        aliases = client().get_registered_model(name).aliases
    return {str(alias): int(version) for alias, version in aliases.items()}


def logged_model_of(version: ModelVersion) -> LoggedModel | None:
    """The logged model of a version, with its metrics and parameters; None where it is gone."""
    from mlflow.exceptions import MlflowException

    model_id = _model_id(version)
    if model_id is None:
        return None
    with tracking_errors(f"look up the model of {version_uri(version)} in"):
        try:
            return client().get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None


def delete_version(uri: str, *, force: bool = False) -> int:
    """Deletes a version and its logged model; returns the version.

    Args:
        force: also if aliases point to it; they are deleted with it.
    Raises:
        UserError: no such version, or an alias points to it.
    """
    version = version_of(uri)
    name, number = version.name, int(version.version)
    aliases = sorted(alias for alias, of in aliases_of(name).items() if of == number)
    if aliases and not force:
        raise UserError(
            f"version {number} of {name!r} is {', '.join(aliases)}: promote another version first, or give "
            "--force"
        )
    mlflow_client, model_id = client(), _model_id(version)
    with tracking_errors(f"delete {version_uri(version)} in"):
        for alias in aliases:
            mlflow_client.delete_registered_model_alias(name, alias)
        mlflow_client.delete_model_version(name, str(number))
        if model_id:
            with suppressed("RESOURCE_DOES_NOT_EXIST"):
                mlflow_client.delete_logged_model(model_id)
    return number


def log_model_metrics(run_id: str, metrics: Mapping[str, float], version: ModelVersion | None) -> None:
    """Logs what was measured of a generator to a run, and to its logged model if it is a registered one.

    Raises:
        UserError: MLflow is away or refuses.
    """
    with tracking_errors("log metrics to"):
        log_metrics(client(), run_id, metrics, 0, _model_id(version) if version else None)


def log_metrics(
    mlflow_client: MlflowClient, run_id: str, metrics: Mapping[str, float], step: int, model_id: str | None
) -> None:
    """Logs metrics to a run and a logged model, except those that they have already at this step."""
    of_run = mlflow_client.get_run(run_id).data.metrics
    of_model = set()
    if model_id:
        logged = mlflow_client.get_logged_model(model_id).metrics or ()
        of_model = {(point.key, point.step, point.value) for point in logged if point.run_id == run_id}
    for key, value in metrics.items():
        points = mlflow_client.get_metric_history(run_id, key) if key in of_run else []
        times = [point.timestamp for point in points if (point.step, point.value) == (step, value)]
        if times and (model_id is None or (key, step, value) in of_model):
            continue
        # Logged again with the same timestamp, a point of the run stays a single one.
        timestamp = times[0] if times else None
        mlflow_client.log_metric(run_id, key, value, timestamp=timestamp, step=step, model_id=model_id)


@contextlib.contextmanager
def suppressed(*codes: str) -> Iterator[None]:
    """Suppresses MLflow's errors of these codes."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


def _model_id(version: ModelVersion) -> str | None:
    """The id of a version's logged model. MLflow's REST answers leave it out; its tag and source name it."""
    source = _MODEL_ID.search(version.source or "")
    return version.model_id or version.tags.get(MODEL_ID_TAG) or (source[1] if source else None)


def _not_found(mlflow_client: MlflowClient, name: str, what: str) -> str:
    """One line that says what the registry has instead."""
    where = f"the registry at {without_login(tracking_uri())}"
    models = {model.name: model for model in mlflow_client.search_registered_models(max_results=1000)}
    if name not in models:
        known = ", ".join(sorted(models)[:10]) or "no model at all"
        return f"{where} has no model {name!r}; it has {known}"
    versions = sorted(int(v.version) for v in mlflow_client.search_model_versions(f"name = '{name}'"))
    aliases = ", ".join(sorted(models[name].aliases)) or "none"
    span = f"{versions[0]} to {versions[-1]}" if versions else "none"
    return f"model {name!r} in {where} has no {what}; versions: {span}, aliases: {aliases}"
