"""The stage 1 that all trials of a sweep start from: found and checked, or trained once as a run."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import Config, config_from_yaml, override
from mimic3d.training.initial_weights import read_initial_state
from mimic3d_platform import storage
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import model_uris
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.models.registry import is_registered, version_of, version_uri
from mimic3d_platform.training import run_identity
from mimic3d_platform.training.progress import progress_bar
from mimic3d_platform.training.train import train
from mimic3d_platform.tuning.schema import SHARED, Sweep

# In the sweep's folder: the URI of the stage 1, where the sweep's file names one.
PINNED = "stage1.uri"
# Keys of the model that its weights do not depend on, or may lack.
_MAY_DIFFER = ("precision", "allow_tf32", "aware_s3d")


def find_stage1(sweep: Sweep) -> str:
    """The checkpoint that the sweep's file names, after checking it; "" where the file names none.

    A run's folder stands for the checkpoint that ends its stage 1, an alias for the version that bears it.

    Raises:
        UserError: nothing is there, it is damaged or does not fit, or the run has not finished its stage 1.
    """
    if not sweep.shares_stage1 or sweep.stage1 == SHARED:
        return ""
    try:
        uri = _checkpoint(sweep.stage1)
        with tempfile.TemporaryDirectory(prefix="mimic3d-stage1-") as name:
            folder = model_uris.fetch(uri, Path(name, "start"))
            try:
                read_initial_state(folder)
                _require_same_networks(folder, uri, sweep.base)
            except ValueError as error:
                raise UserError(str(error).replace(str(folder), uri)) from error
    except UserError as error:
        raise UserError(f"stage1: {error}") from error
    return uri


def pinned_stage1(sweep_uri: str) -> str:
    """The checkpoint that the sweep was first started with, "" before its first start.

    An alias or a run's folder may stand for another checkpoint by now, or for none.
    """
    place = storage.join(sweep_uri, PINNED)
    return storage.read_bytes(place).decode() if storage.exists(place) else ""


def pin_stage1(uri: str, sweep_uri: str) -> str:
    """Keeps `uri` as the checkpoint from which the trials start, unless one is kept; returns the kept one."""
    if known := pinned_stage1(sweep_uri):
        return known
    storage.write_bytes(storage.join(sweep_uri, PINNED), uri.encode())
    return uri


def train_stage1(sweep: Sweep, name: str, runs_uri: str, parent_run_id: str, console: Console) -> str:
    """Trains stage 1 as the run NAME-stage1, or resumes it; returns its last checkpoint's URI."""
    run = stage1_run(name)
    console.say(f"stage 1, once for all trials: run {run}")
    with progress_bar(console) as show_progress:
        result = train(
            override(sweep.base, {"schedule.stage2_kimg": 0.0}),
            run,
            runs_uri=runs_uri,
            parent_run_id=parent_run_id,
            on_progress=show_progress,
            on_note=console.say,
        )
    return result.checkpoint_uri


def stage1_run(sweep: str) -> str:
    """The name of the run that trains a sweep's stage 1."""
    return f"{sweep}-stage1"


def _checkpoint(uri: str) -> str:
    """The URI of the checkpoint or registered version that `uri` stands for now."""
    if is_registered(uri):
        return version_uri(version_of(uri))
    if not storage.exists(uri):
        raise UserError(f"there is nothing at {uri}; name a checkpoint, a run's folder, shared or own")
    config_uri = storage.join(uri, CONFIG)
    if not (storage.exists(config_uri) and storage.exists(storage.join(uri, run_identity.ORIGIN))):
        return uri
    nimg = run_identity.read_config_file(config_uri).stage1_nimg
    runs_uri, _, run = uri.rstrip("/").rpartition("/")
    ends = [stored.uri for stored in CheckpointStore(runs_uri, run).all() if stored.nimg == nimg > 0]
    if not ends:
        reason = f"is not at the end of its stage 1 ({nimg} images) yet" if nimg else "has no stage 1"
        raise UserError(f"the run {uri} {reason}; name another, or one of its checkpoints")
    return ends[-1]


def _require_same_networks(folder: Path, uri: str, base: Config) -> None:
    """Raises ValueError where the generator in `folder` has other networks than the sweep's config."""
    file = model_uris.generator_folder(folder) / CONFIG
    if not file.is_file():
        return
    found = asdict(config_from_yaml(file.read_text(encoding="utf-8"), str(file)).model)
    for key, wanted in asdict(base.model).items():
        if key not in _MAY_DIFFER and not key.startswith("discriminator") and found[key] != wanted:
            raise ValueError(f"{uri} has model.{key} {found[key]}, the sweep {wanted}; make them the same")
