"""The model registry: generators as files that are data only, registered, given aliases, and pulled again.

A registered generator is the folder that `mimic3d.checkpoints` writes (safetensors and a config) with a
list of its files' SHA-256 digests. No pickle is written or read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimic3d_platform import storage
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
    from mlflow.entities.model_registry import ModelVersion

DIGESTS = "SHA256SUMS"
MODEL_TYPE = "mimic3d-generator"
DIGEST_TAG = "mimic3d.digest"

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w.\-]+)|/(?P<version>\d+))")


def register_generator(
    folder: str | Path,
    name: str,
    run_id: str,
    metrics: Mapping[str, float],
    alias: str | None = None,
    step: int = 0,
) -> int:
    """Log a generator's folder as a model of its run and register it under `name`.

    Done again with the same files and run, it finds the version that is there.

    Args:
        folder: of `generator.safetensors` and `config.yaml`; all files below it are taken.
        metrics: shown with the model.
        alias: moved to the new version.
        step: images consumed, at which `metrics` were measured.
    Returns:
        The version.
    Raises:
        UserError: no generator in the folder, a name MLflow cannot take, or MLflow away or refusing.
    """
    folder = Path(folder)
    if not (folder / "generator.safetensors").is_file():
        raise UserError(
            f"{folder} holds no generator.safetensors; name a folder that a training has exported"
        )
    _require_name(name)
    digests = _digests(folder)
    whole = hashlib.sha256(digests.encode()).hexdigest()
    check_tracking()
    mlflow_client = client()
    with tracking_errors(f"register {name!r} in"):
        version = _registered(mlflow_client, name, run_id, whole)
        if version is None:
            model_id = _log_model(mlflow_client, folder, name, run_id, metrics, step, digests)
            with _unless("RESOURCE_ALREADY_EXISTS"):
                mlflow_client.create_registered_model(name)
            created = mlflow_client.create_model_version(
                name, f"models:/{model_id}", run_id, tags={DIGEST_TAG: whole}, model_id=model_id
            )
            version = int(created.version)
        if alias:
            mlflow_client.set_registered_model_alias(name, alias, str(version))
    return version


def register_folder(folder: str | Path, name: str, alias: str | None = None) -> int:
    """Registers a generator that no run of this MLflow made, such as an imported one, with a run of its own.

    Done again with the same files, it finds the version that is there.

    Returns:
        The version.
    Raises:
        UserError: as `register_generator`, or the folder's files do not make a generator.
    """
    from mimic3d.checkpoints.folder import load_generator
    from mimic3d.config import to_dict
    from mimic3d_platform.tracking import finish_run, start_or_resume_run
    from mimic3d_platform.training.mlflow_runs import EXPERIMENT

    try:
        _, config = load_generator(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    _require_name(name)
    check_tracking()
    digest = hashlib.sha256(_digests(Path(folder)).encode()).hexdigest()
    tags = {"mimic3d.model": str(folder), "mimic3d.model.sha256": digest}
    run_id = start_or_resume_run(EXPERIMENT, f"register-{digest[:12]}", to_dict(config), tags)
    version = register_generator(folder, name, run_id, {}, alias)
    finish_run(run_id)
    return version


def _require_name(name: str) -> None:
    if not name or any(letter in name for letter in "/:@"):
        raise UserError(f"model name {name!r}: it must not be empty nor contain '/', ':' or '@'")


def promote(name: str, version: int, alias: str) -> None:
    """Give `alias` to a version of a registered model; whichever version bore it loses it.

    Raises:
        UserError: no such model or version, or MLflow away.
    """
    check_tracking()
    mlflow_client = client()
    with tracking_errors(f"promote {name!r} in"):
        with _unless("RESOURCE_DOES_NOT_EXIST") as missing:
            mlflow_client.get_model_version(name, str(version))
        if missing:
            raise UserError(_not_there(mlflow_client, name, f"version {version}"))
        mlflow_client.set_registered_model_alias(name, alias, str(version))


def pull(uri: str, destination: str | Path) -> Path:
    """Download a registered generator and hold every file to its digest.

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
        # Beside the target, on the same device: what is checked is then moved, whole.
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
    with tracking_errors(f"look up {uri} in"):
        with _unless("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE") as missing:
            if parts["alias"]:
                found = mlflow_client.get_model_version_by_alias(parts["name"], parts["alias"])
            else:
                found = mlflow_client.get_model_version(parts["name"], parts["version"])
        if missing:
            what = f"alias {parts['alias']!r}" if parts["alias"] else f"version {parts['version']}"
            raise UserError(_not_there(mlflow_client, parts["name"], what))
    return found


def log_model_metrics(run_id: str, metrics: Mapping[str, float], version: ModelVersion | None) -> None:
    """Logs what was measured of a generator to a run, and shows it with the model if it is a registered one.

    Raises:
        UserError: MLflow is away or refuses.
    """
    mlflow_client = client()
    model_id = version.model_id if version is not None else None
    with tracking_errors("log metrics to"):
        known = mlflow_client.get_run(run_id).data.metrics
        for key, value in metrics.items():
            if known.get(key) != value:
                mlflow_client.log_metric(run_id, key, value, step=0, model_id=model_id)


def _log_model(
    mlflow_client: MlflowClient,
    folder: Path,
    name: str,
    run_id: str,
    metrics: Mapping[str, float],
    step: int,
    digests: str,
) -> str:
    """A logged model of the run, with its files and metrics; returns its id."""
    run = mlflow_client.get_run(run_id)
    model = mlflow_client.create_logged_model(
        run.info.experiment_id, name=name, source_run_id=run_id, model_type=MODEL_TYPE
    )
    try:
        with tempfile.TemporaryDirectory(prefix="mimic3d-model-") as place:
            copy = shutil.copytree(folder, Path(place, "model"), copy_function=_link_or_copy)
            (copy / DIGESTS).unlink(missing_ok=True)
            (copy / DIGESTS).write_text(digests)
            mlflow_client.log_model_artifacts(model.model_id, str(copy))
        for key, value in metrics.items():
            # A point that the run has already is told again to the millisecond, which MLflow knows for the
            # same.
            points = mlflow_client.get_metric_history(run_id, key) if key in run.data.metrics else []
            same = [point.timestamp for point in points if (point.step, point.value) == (step, value)]
            mlflow_client.log_metric(
                run_id, key, value, timestamp=same[0] if same else None, step=step, model_id=model.model_id
            )
        mlflow_client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with contextlib.suppress(Exception):
            mlflow_client.finalize_logged_model(model.model_id, "FAILED")
        raise
    return str(model.model_id)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _registered(mlflow_client: MlflowClient, name: str, run_id: str, digest: str) -> int | None:
    found = mlflow_client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return max((int(v.version) for v in found if v.tags.get(DIGEST_TAG) == digest), default=None)


def _digests(folder: Path) -> str:
    """What `sha256sum` prints for all files below `folder`, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    return "".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(folder: Path, uri: str) -> None:
    expected = folder / DIGESTS
    if not expected.is_file():
        raise UserError(f"{uri} has no {DIGESTS}: it was not registered by `mimic3d`")
    listed = dict(reversed(line.split("  ", 1)) for line in expected.read_text().splitlines())
    present = dict(reversed(line.split("  ", 1)) for line in _digests(folder).splitlines())
    for name in sorted(listed.keys() | present.keys()):
        if listed.get(name) != present.get(name):
            state = "is missing" if name not in present else "is not the file that was registered"
            raise UserError(f"{uri}: {name} {state}; nothing was kept, register the model again")


def _download(uri: str, folder: str) -> None:
    import mlflow

    with tracking_errors(f"download {uri} from"), in_environment() as where:
        mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=where, registry_uri=where)


@contextlib.contextmanager
def _unless(*codes: str) -> Iterator[list[Any]]:
    """Swallow MLflow's errors of these codes; the list that is given then holds the error."""
    from mlflow.exceptions import MlflowException

    caught: list[Any] = []
    try:
        yield caught
    except MlflowException as error:
        if error.error_code not in codes:
            raise
        caught.append(error)


def _not_there(mlflow_client: MlflowClient, name: str, what: str) -> str:
    """One line on what the registry has instead."""
    where = f"the registry at {shown(tracking_uri())}"
    models = {model.name: model for model in mlflow_client.search_registered_models(max_results=1000)}
    if name not in models:
        known = ", ".join(sorted(models)[:10]) or "no model at all"
        return f"{where} has no model {name!r}; it has {known}"
    versions = sorted(int(v.version) for v in mlflow_client.search_model_versions(f"name = '{name}'"))
    aliases = ", ".join(sorted(models[name].aliases)) or "none"
    span = f"{versions[0]} to {versions[-1]}" if versions else "none"
    return f"model {name!r} in {where} has no {what}; versions: {span}, aliases: {aliases}"
