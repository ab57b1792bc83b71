"""The model registry in MLflow: registers generators' folders, and pulls them back verified.

A registered generator is the folder that `mimic3d.checkpoints` writes (safetensors and a config) with a list
of its files' SHA-256. No pickle is written or read.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mimic3d.checkpoints.file_names import GENERATOR_WEIGHTS
from mimic3d.config import to_dict
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.digests import format_sha256sums, parse_sha256sums, sha256, sha256_of_files
from mimic3d_platform.tracking import EXPERIMENT, finish_run, start_or_resume_run
from mimic3d_platform.tracking.server import (
    check_tracking,
    client,
    in_environment,
    tracking_errors,
    tracking_uri,
    without_login,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DIGESTS = "SHA256SUMS"
MODEL_TYPE = "mimic3d-generator"
DIGEST_TAG = "mimic3d.digest"
# What MLflow's models, or a `models:/` URI, cannot have in a name, and the length of its database's column.
_NOT_IN_NAMES = "/:.%\"'@?#"
_MAX_NAME_LENGTH, _MAX_ALIAS_LENGTH = 250, 255

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w.\-]+)|/(?P<version>\d+))")


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


def register_generator(
    folder: str | Path,
    name: str,
    run_id: str,
    metrics: Mapping[str, float],
    alias: str | None = None,
    step: int = 0,
) -> int:
    """Logs a generator's folder as a model of its run and registers it under `name`.

    If a version of the same run has the same files already, that version is returned.

    Args:
        folder: with `generator.safetensors` and `config.yaml`; all files below it are taken.
        metrics: without_login with the model.
        alias: moved to the version.
        step: images consumed, at which `metrics` were measured.
    Returns:
        The version.
    Raises:
        UserError: no generator in the folder, a name that MLflow cannot take, or MLflow away or refusing.
    """
    check_registration(name, alias)
    return _register(Path(folder), _digests(folder), name, run_id, metrics, alias, step)


def register_folder(folder: str | Path, name: str, alias: str | None = None) -> int:
    """Registers a generator that no run of this MLflow made, such as an imported one, with a run of its own.

    If a version has the same files already, that version is returned.

    Returns:
        The version.
    Raises:
        UserError: as `register_generator`, or the folder's files do not make a generator.
    """
    from mimic3d.checkpoints.generator_folder import load_generator

    check_registration(name, alias)
    try:
        _, config = load_generator(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    check_tracking()
    digests = _digests(folder)
    digest = sha256(digests.encode())
    tags = {"mimic3d.model": str(folder), "mimic3d.model.sha256": digest}
    run_id = start_or_resume_run(EXPERIMENT, f"register-{digest[:12]}", to_dict(config), tags)
    try:
        version = _register(Path(folder), digests, name, run_id, {}, alias)
    except BaseException:
        with contextlib.suppress(UserError):
            finish_run(run_id, "FAILED")
        raise
    finish_run(run_id)
    return version


def pull(uri: str, destination: str | Path) -> Path:
    """Downloads a registered generator and verifies the SHA-256 of every file.

    Args:
        uri: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        destination: a folder, made if need be; files of the same names in it are replaced.
    Returns:
        The folder, which `mimic3d.checkpoints` loads.
    Raises:
        UserError: not such a URI, no such model, alias or version, a file that does not match its digest, or
            MLflow away.
    """
    found = version_of(uri)
    destination = storage.local_path(destination)
    with storage.translate_errors(destination, "write"):
        destination.mkdir(parents=True, exist_ok=True)
        # Within the destination, so on the same device: verified files are moved, never copied.
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=destination) as partial:
            _download(f"models:/{found.name}/{found.version}", partial)
            _verify(Path(partial), uri)
            for file in sorted(path for path in Path(partial).rglob("*") if path.is_file()):
                target = destination / file.relative_to(partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    return destination


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


def log_model_metrics(run_id: str, metrics: Mapping[str, float], version: ModelVersion | None) -> None:
    """Logs what was measured of a generator to a run, and to its logged model if it is a registered one.

    Raises:
        UserError: MLflow is away or refuses.
    """
    with tracking_errors("log metrics to"):
        _log_metrics(client(), run_id, metrics, 0, _model_id(version) if version else None)


def _register(
    folder: Path,
    digests: str,
    name: str,
    run_id: str,
    metrics: Mapping[str, float],
    alias: str | None,
    step: int = 0,
) -> int:
    if not (folder / GENERATOR_WEIGHTS).is_file():
        raise UserError(f"{folder} holds no {GENERATOR_WEIGHTS}; name a folder that a training has exported")
    digest = sha256(digests.encode())
    check_tracking()
    mlflow_client = client()
    with tracking_errors(f"register {name!r} in"):
        version = _registered(mlflow_client, name, run_id, digest)
        if version is None:
            model_id = _log_model(mlflow_client, folder, digests, name, run_id, metrics, step)
            with _suppressed("RESOURCE_ALREADY_EXISTS"):
                mlflow_client.create_registered_model(name)
            created = mlflow_client.create_model_version(
                name, f"models:/{model_id}", run_id, tags={DIGEST_TAG: digest}, model_id=model_id
            )
            version = int(created.version)
        if alias:
            mlflow_client.set_registered_model_alias(name, alias, str(version))
    return version


def _registered(mlflow_client: MlflowClient, name: str, run_id: str, digest: str) -> int | None:
    found = mlflow_client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return max((int(v.version) for v in found if v.tags.get(DIGEST_TAG) == digest), default=None)


def _log_model(
    mlflow_client: MlflowClient,
    folder: Path,
    digests: str,
    name: str,
    run_id: str,
    metrics: Mapping[str, float],
    step: int,
) -> str:
    """Logs a folder as a model of the run, with its metrics; returns the logged model's id."""
    run = mlflow_client.get_run(run_id)
    model = mlflow_client.create_logged_model(
        run.info.experiment_id, name=name, source_run_id=run_id, model_type=MODEL_TYPE
    )
    model_id = str(model.model_id)
    try:
        with tempfile.TemporaryDirectory(prefix="mimic3d-model-") as place:
            copy = shutil.copytree(folder, Path(place, "model"), copy_function=_link_or_copy)
            (copy / DIGESTS).unlink(missing_ok=True)
            (copy / DIGESTS).write_text(digests)
            mlflow_client.log_model_artifacts(model_id, str(copy))
        _log_metrics(mlflow_client, run_id, metrics, step, model_id)
        mlflow_client.finalize_logged_model(model_id, "READY")
    except BaseException:
        with contextlib.suppress(Exception):
            mlflow_client.finalize_logged_model(model_id, "FAILED")
        raise
    return model_id


def _log_metrics(
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


def _model_id(version: ModelVersion) -> str | None:
    """The id of a version's logged model. MLflow's REST answers leave it out, and name it in the source."""
    source = re.fullmatch(r"models:/(m-\w+)", version.source or "")
    return version.model_id or (source[1] if source else None)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _digests(folder: str | Path) -> str:
    """What `sha256sum` prints for all files below `folder`, by name."""
    return format_sha256sums(sha256_of_files(Path(folder), leave_out=[DIGESTS]))


def _verify(folder: Path, uri: str) -> None:
    """Raises `UserError` where the files of a folder are not those of its list of digests."""
    expected = folder / DIGESTS
    if not expected.is_file():
        raise UserError(f"{uri} has no {DIGESTS}: it was not registered by `mimic3d`")
    try:
        listed = parse_sha256sums(expected.read_text())
    except ValueError as error:
        raise UserError(f"{uri}: its {DIGESTS} is damaged ({error}); register the model again") from error
    present = sha256_of_files(folder, leave_out=[DIGESTS])
    for name in sorted(listed.keys() | present.keys()):
        if listed.get(name) != present.get(name):
            state = "is missing" if name not in present else "is not the file that was registered"
            raise UserError(f"{uri}: {name} {state}; nothing was kept, register the model again")


def _download(uri: str, folder: str) -> None:
    import mlflow

    with tracking_errors(f"download {uri} from"), in_environment() as where:
        mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=where, registry_uri=where)


@contextlib.contextmanager
def _suppressed(*codes: str) -> Iterator[None]:
    """Suppresses MLflow's errors of these codes."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


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
