"""Registers generators in MLflow: weights, config, cards, lineage, previews, a pyfunc for plain clients."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d.config import Config, to_dict
from mimic3d.networks.generator import Generator
from mimic3d_platform import storage
from mimic3d_platform.errors import one_line, user_errors
from mimic3d_platform.models.lineage import (
    Lineage,
    data_of,
    lineage_of_run,
    read_lineage,
    trained_by,
    write_lineage,
)
from mimic3d_platform.models.model_card import MAX_DESCRIPTION, description, write_model_card
from mimic3d_platform.models.previews import write_previews
from mimic3d_platform.models.pyfunc_files import write_pyfunc
from mimic3d_platform.models.registry import (
    DIGEST_TAG,
    FORMAT,
    FORMAT_TAG,
    GENERATOR_TAG,
    MODEL_ID_TAG,
    check_registration,
    log_metrics,
    suppressed,
)
from mimic3d_platform.models.version_files import DIGESTS, GENERATOR_FILES, PREVIEWS, is_data
from mimic3d_platform.storage.digests import format_sha256sums, sha256, sha256_of_file, sha256_of_files
from mimic3d_platform.tracking import EXPERIMENT, closed_after, flat_params, start_or_resume_run
from mimic3d_platform.tracking.server import check_tracking, client, tracking_errors
from mimic3d_platform.tracking.tags import DATA_TAG, RECIPE_TAG, RESOLUTION_TAG, STAGE1_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MODEL_TYPE = "mimic3d-generator"
_DESCRIPTION_TAG = "mlflow.note.content"


@dataclass(frozen=True)
class _Source:
    """A folder that is registered: its generator, and one digest of the generator's files."""

    folder: Path
    generator: Generator
    config: Config
    digest: str


def register_generator(
    folder: str | Path, name: str, run_id: str, metrics: Mapping[str, float], step: int = 0
) -> int:
    """Logs a generator's folder as a model of its run and registers it under `name`.

    If a version of the same run has the same generator already, that version is returned; so it is if several
    processes register it at the same time.

    Args:
        folder: with `generator.safetensors` and `config.yaml`; only files that a version has are taken.
        metrics: logged with the model.
        step: images consumed, at which `metrics` were measured.
    Returns:
        The version.
    Raises:
        UserError: no generator in the folder, a name that MLflow cannot take, or MLflow away or refusing.
    """
    check_registration(name)
    source = _read(folder)
    check_tracking()
    return _register(source, name, run_id, metrics, step)


def register_folder(folder: str | Path, name: str) -> int:
    """Registers a generator that no run of this MLflow made, such as an imported one, with a run of its own.

    If an earlier call has registered the same folder under `name`, its version is returned.

    Returns:
        The version.
    Raises:
        UserError: as `register_generator`.
    """
    check_registration(name)
    source = _read(folder)
    check_tracking()
    tags = {"mimic3d.model": Path(folder).name, "mimic3d.model.sha256": source.digest}
    run_name = f"register-{source.digest[:12]}"
    run_id = start_or_resume_run(EXPERIMENT, run_name, to_dict(source.config), tags)
    with closed_after(run_id):
        return _register(source, name, run_id, {}, 0)


def _read(folder: str | Path) -> _Source:
    folder = storage.local_path(folder)
    with user_errors():
        generator, config = load_generator(folder)
    present = [name for name in sorted(GENERATOR_FILES) if (folder / name).is_file()]
    digests = {name: sha256_of_file(folder / name) for name in present}
    return _Source(folder, generator, config, sha256(format_sha256sums(digests).encode()))


def _register(source: _Source, name: str, run_id: str, metrics: Mapping[str, float], step: int) -> int:
    mlflow_client = client()
    with tracking_errors(f"register {name!r} in"):
        if (version := _registered(mlflow_client, name, run_id, source.digest)) is not None:
            return int(version.version)
        run = mlflow_client.get_run(run_id)
        with suppressed("RESOURCE_ALREADY_EXISTS"):
            mlflow_client.create_registered_model(name)
        with _logged_model(mlflow_client, source, name, run, step) as (model_id, place):
            lineage = _write_files(source, place, name, run, model_id, metrics)
            digests = format_sha256sums(sha256_of_files(place, leave_out=[DIGESTS]))
            (place / DIGESTS).write_text(digests, encoding="utf-8")
            mlflow_client.log_model_artifacts(model_id, str(place))
            log_metrics(mlflow_client, run_id, metrics, step, model_id)
            text = description(name, source.config, source.generator.branches, metrics, lineage)[
                :MAX_DESCRIPTION
            ]
            mlflow_client.set_logged_model_tags(model_id, {_DESCRIPTION_TAG: text})
            tags = _tags(source, lineage) | {
                DIGEST_TAG: sha256(digests.encode()),
                GENERATOR_TAG: source.digest,
                FORMAT_TAG: str(FORMAT),
                MODEL_ID_TAG: model_id,
            }
        # The place of the artifacts, because some clients read a version's source as one; they do not know
        # `models:/m-…`.
        place_uri = str(mlflow_client.get_logged_model(model_id).artifact_location)
        created = mlflow_client.create_model_version(
            name, place_uri, run_id, tags=tags, description=text, model_id=model_id
        )
        return _single(mlflow_client, name, run_id, source.digest, created, model_id)


def _single(
    mlflow_client: MlflowClient, name: str, run_id: str, digest: str, created: ModelVersion, model_id: str
) -> int:
    """The version that all processes agree on which register the same generator at once: the oldest.

    MLflow cannot be asked to create a version only if there is none; so each process looks after it has
    created its own, and a later one is deleted.
    """
    oldest = _registered(mlflow_client, name, run_id, digest)
    if oldest is None or int(oldest.version) >= int(created.version):
        return int(created.version)
    mlflow_client.delete_model_version(name, created.version)
    mlflow_client.delete_logged_model(model_id)
    return int(oldest.version)


def _registered(mlflow_client: MlflowClient, name: str, run_id: str, digest: str) -> ModelVersion | None:
    """The oldest version of a run with this generator."""
    found = mlflow_client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    same = [version for version in found if version.tags.get(GENERATOR_TAG) == digest]
    return min(same, key=lambda version: int(version.version), default=None)


@contextlib.contextmanager
def _logged_model(
    mlflow_client: MlflowClient, source: _Source, name: str, run: Run, step: int
) -> Iterator[tuple[str, Path]]:
    """A logged model in the making, the output of its run: its id, and a folder for its files."""
    from mlflow.entities import LoggedModelOutput

    model = mlflow_client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run.info.run_id,
        model_type=MODEL_TYPE,
        params=flat_params(to_dict(source.config)),
    )
    model_id = str(model.model_id)
    try:
        with tempfile.TemporaryDirectory(prefix="mimic3d-model-") as folder:
            yield model_id, Path(folder)
        mlflow_client.finalize_logged_model(model_id, "READY")
        mlflow_client.log_outputs(run.info.run_id, [LoggedModelOutput(model_id, step)])
    except BaseException:
        with contextlib.suppress(Exception):
            mlflow_client.finalize_logged_model(model_id, "FAILED")
        raise


def _write_files(
    source: _Source, place: Path, name: str, run: Run, model_id: str, metrics: Mapping[str, float]
) -> Lineage:
    """Writes all files of a version but its list of digests into `place`; returns the lineage."""
    for file in sorted(path for path in source.folder.rglob("*") if path.is_file()):
        relative = file.relative_to(source.folder).as_posix()
        if is_data(relative):
            (place / relative).parent.mkdir(parents=True, exist_ok=True)
            # Weights are large, and are not written to; the other files are.
            (_link_or_copy if file.suffix == ".safetensors" else shutil.copyfile)(file, place / relative)
    config, former = source.config, read_lineage(place)
    lineage = lineage_of_run(run.info.run_id, config, former)
    lineage["data"] = data_of(config, trained_by(run), place, former)
    write_lineage(place, lineage)
    for left in place.glob(f"{PREVIEWS}/*"):
        left.unlink()
    try:
        previews = write_previews(source.generator, config, place)
    except Exception as error:  # A finished training is registered even if its pictures cannot be made.
        previews = []
        lineage["previews_failed"] = f"{type(error).__name__}: {one_line(error, 300)}"
        write_lineage(place, lineage)
    write_model_card(place, name, config, source.generator.branches, metrics, lineage, previews)
    write_pyfunc(
        place, config, source.generator.branches, run_id=run.info.run_id, model_id=model_id, name=name
    )
    return lineage


def _tags(source: _Source, lineage: Lineage) -> dict[str, str]:
    """The tags by which MLflow's pages and searches show what a version is."""
    config, data = source.config, lineage.get("data")
    data = data if isinstance(data, dict) else {}
    licences = data.get("licences")
    tags = {
        RECIPE_TAG: config.recipe,
        "mimic3d.architecture": config.model.architecture,
        RESOLUTION_TAG: str(config.model.image_resolution),
        "mimic3d.branches": ", ".join(source.generator.branches),
        DATA_TAG: str(data.get("fingerprint") or ""),
        "mimic3d.licences": ", ".join(map(str, licences)) if isinstance(licences, list) else "",
        STAGE1_TAG: str(lineage.get("stage1_checkpoint") or ""),
    }
    return {key: value for key, value in tags.items() if value}


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
