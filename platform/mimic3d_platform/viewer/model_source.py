"""The model that `mimic3d view` shows: of a URI, or the newest checkpoint of a run, which may be training."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mimic3d.checkpoints.file_names import CONFIG, GENERATOR_FOLDER
from mimic3d.config import Config
from mimic3d.networks.generator import Generator
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import FOLDER as CHECKPOINTS
from mimic3d_platform.models.checkpoints import CheckpointStore, StoredCheckpoint, require_files
from mimic3d_platform.models.model_uris import BUILTIN, load_generator
from mimic3d_platform.models.registry import is_registered
from mimic3d_platform.settings import use_services

DEFAULT_MODEL = "builtin:cars"
POLL_S = 5.0


@dataclass(frozen=True)
class LoadedModel:
    """A generator in evaluation mode, its config, and a name for the page."""

    generator: Generator
    config: Config
    name: str


class RunSource:
    """The newest checkpoint of a run."""

    def __init__(self, runs_uri: str, run: str) -> None:
        self.uri, self._run = storage.join(runs_uri, run), run
        self._store = CheckpointStore(runs_uri, run)
        self._loaded = ""

    def newer(self) -> LoadedModel | None:
        """The model of the newest checkpoint; None if there is none, or it is what was loaded last.

        Raises:
            UserError: storage does not answer, or the checkpoint is damaged.
        """
        stored = self._store.all()
        if not stored or stored[-1].uri == self._loaded:
            return None
        newest = stored[-1]
        generator, config = _load_checkpoint(newest)
        self._loaded = newest.uri
        return LoadedModel(generator, config, f"{self._run} at {newest.nimg / 1000:g} kimg")


def find_run(uri: str, runs_uri: str) -> RunSource | None:
    """The run that `uri` names: the run's folder, or its name below `runs_uri`; None if it is no run.

    A name counts as a run unless a local folder of that name is a generator's or a checkpoint's.
    """
    if uri.startswith(BUILTIN) or is_registered(uri):
        return None
    is_name = "/" not in uri and not (storage.is_local(uri) and storage.local_path(uri).is_dir())
    place = storage.join(runs_uri, uri) if is_name else uri.rstrip("/")
    if not storage.is_local(place):
        use_services()
    if not is_name and _is_model(place):
        return None
    if is_name or storage.list_files(storage.join(place, CHECKPOINTS)):
        parent, _, name = storage.absolute(place).rpartition("/")
        return RunSource(parent, name)
    return None


def load_model(uri: str) -> LoadedModel:
    """The model of a URI that is no run.

    Raises:
        UserError: there is no such model, or it cannot be loaded.
    """
    return LoadedModel(*load_generator(uri), uri)


def first_model(run: RunSource, ended: threading.Event | None) -> LoadedModel:
    """The model of a run's newest checkpoint.

    Args:
        ended: waits for the first checkpoint until it is set; None does not wait.
    Raises:
        UserError: the run has no checkpoint, or it cannot be loaded.
    """
    while (found := run.newer()) is None:
        if ended is None or ended.wait(POLL_S):
            raise UserError(
                f"there is no checkpoint of a run at {run.uri}: give a generator's folder, "
                f"models:/NAME@ALIAS, {DEFAULT_MODEL} or a run's name, or wait for one with --follow"
            )
    return found


def follow(
    run: RunSource,
    on_model: Callable[[LoadedModel], None],
    on_trouble: Callable[[str], None],
    ended: threading.Event,
    every_s: float = POLL_S,
) -> None:
    """Looks for newer checkpoints of a run until `ended` is set.

    Args:
        on_model: receives each model that is newer than the last.
        on_trouble: receives one line when storage does not answer or a checkpoint is damaged; the next look
            tries again.
    """
    last = ""
    while not ended.wait(every_s):
        try:
            found = run.newer()
        except UserError as error:
            if str(error) != last:
                last = str(error)
                on_trouble(last)
            continue
        last = ""
        if found is not None:
            on_model(found)


def _is_model(place: str) -> bool:
    """Whether a folder holds a generator, or a checkpoint that holds one."""
    return any(
        storage.exists(storage.join(place, *parts)) for parts in ((CONFIG,), (GENERATOR_FOLDER, CONFIG))
    )


def _load_checkpoint(checkpoint: StoredCheckpoint) -> tuple[Generator, Config]:
    """The generator of a checkpoint: only its folder is copied, and verified against the manifest."""
    with tempfile.TemporaryDirectory(prefix="mimic3d-view-") as temporary:
        folder, prefix = Path(temporary) / GENERATOR_FOLDER, f"{GENERATOR_FOLDER}/"
        storage.copy_tree(storage.join(checkpoint.uri, GENERATOR_FOLDER), folder)
        files = {name: digest for name, digest in checkpoint.files.items() if name.startswith(prefix)}
        require_files(Path(temporary), files, checkpoint.uri)
        try:
            return load_generator(str(folder))
        except UserError as error:
            raise UserError(str(error).replace(str(folder), checkpoint.uri)) from error
