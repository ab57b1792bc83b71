"""The stage 1 that all trials of a sweep start from: found, held to the sweep's networks, or trained."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import Config, config_from_yaml
from mimic3d_platform import storage
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import model_uris
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.models.registry import version_of
from mimic3d_platform.training import runs
from mimic3d_platform.training.run import train
from mimic3d_platform.tuning.sweep import SHARED, Sweep
from mimic3d_platform.tuning.trials import stage1_config

# In the sweep's folder: the start of its trials, where its file names one.
PINNED = "stage1.uri"
# Of the generator, what its weights do not depend on, or may lack.
_MAY_DIFFER = ("precision", "allow_tf32", "aware_s3d")


def find(sweep: Sweep) -> str:
    """The checkpoint that the sweep's file names, whole and of the sweep's networks; "" where it names none.

    Of a run's folder it is the checkpoint that ends stage 1, of an alias the version that bears it.

    Raises:
        UserError: nothing is there, it is damaged or does not fit, or the run is not that far.
    """
    if not sweep.forks or sweep.stage1 == SHARED:
        return ""
    from mimic3d.training.start import read_start

    try:
        uri = _checkpoint(sweep.stage1)
        with tempfile.TemporaryDirectory(prefix="mimic3d-start-") as name:
            folder = model_uris.fetch(uri, Path(name, "start"))
            try:
                read_start(folder)
                _require_fit(folder, uri, sweep.base)
            except ValueError as error:
                raise UserError(str(error).replace(str(folder), uri)) from error
    except UserError as error:
        raise UserError(f"stage1: {error}") from error
    return uri


def pinned(uri: str, sweep_uri: str) -> str:
    """What the sweep's first start found, though an alias or a run's folder may stand for another by now."""
    place = storage.join(sweep_uri, PINNED)
    if not storage.exists(place):
        storage.write_bytes(place, uri.encode())
    return storage.read_bytes(place).decode()


def _checkpoint(uri: str) -> str:
    if uri.startswith("models:/"):
        found = version_of(uri)
        return f"models:/{found.name}/{found.version}"
    if not storage.exists(uri):
        raise UserError(f"there is nothing at {uri}; name a checkpoint, a run's folder, shared or own")
    place = storage.join(uri, runs.CONFIG)
    if not (storage.exists(place) and storage.exists(storage.join(uri, runs.ORIGIN))):
        return uri
    nimg = config_from_yaml(storage.read_bytes(place).decode(), place).stage1_nimg
    above, _, run = uri.rstrip("/").rpartition("/")
    ends = [found.uri for found in CheckpointStore(above, run).all() if found.nimg == nimg > 0]
    if not ends:
        reason = f"is not at the end of its stage 1 ({nimg} images) yet" if nimg else "has no stage 1"
        raise UserError(f"the run {uri} {reason}; name another, or one of its checkpoints")
    return ends[-1]


def _require_fit(folder: Path, uri: str, base: Config) -> None:
    """Raises ValueError where the generator of a start is of another kind or size than the sweep's."""
    file = model_uris.generator_folder(folder) / CONFIG
    if not file.is_file():
        return
    there = asdict(config_from_yaml(file.read_text(), str(file)).model)
    for key, wanted in asdict(base.model).items():
        if key not in _MAY_DIFFER and not key.startswith("discriminator") and there[key] != wanted:
            raise ValueError(f"{uri} has model.{key} {there[key]}, the sweep {wanted}; make them the same")


def trained(sweep: Sweep, name: str, runs_uri: str, run_id: str, console: Console) -> str:
    """Trains it as the run NAME-stage1, going on if that was begun; the checkpoint's URI."""
    run = run_of(name)
    console.say(f"stage 1, once for all trials: run {run}")
    with console.training() as follow:
        result = train(
            stage1_config(sweep),
            run,
            runs_uri=runs_uri,
            parent_run_id=run_id,
            on_progress=follow,
            on_note=console.say,
        )
    return result.checkpoint_uri


def run_of(sweep: str) -> str:
    """The name of the run that is a sweep's stage 1."""
    return f"{sweep}-stage1"
