"""Trains a run and registers its generator: what `mimic3d train`, the demo and jobs on a cluster do."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from mimic3d.checkpoints.file_names import GENERATOR_FOLDER
from mimic3d.config import Config
from mimic3d_platform.console import Console
from mimic3d_platform.models import model_uris
from mimic3d_platform.models.gate import promote
from mimic3d_platform.models.registration import register_generator
from mimic3d_platform.models.registry import check_registration
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.training.progress import progress_bar
from mimic3d_platform.training.result import TrainingResult
from mimic3d_platform.training.train import train


@dataclass(frozen=True)
class RegisteredTraining:
    """A finished run, and the version of its generator in the registry if it was registered."""

    result: TrainingResult
    version: int | None


def train_and_register(
    config: Config,
    name: str,
    console: Console,
    *,
    runs_uri: str | None = None,
    workers: int | tuple[int, int] | None = None,
    extend: bool = False,
    model: str | None = None,
    alias: str | None = None,
) -> RegisteredTraining:
    """Trains a run to its end and registers its generator as a version of `model`.

    The version takes `alias`, if given, where the gate passes it; `console` says why where it does not.

    Args:
        extend: makes an existing run longer, see `extension`.
    Raises:
        UserError: as `train`, `register_generator` and `promote`; names that MLflow could not take are
            refused before anything starts.
    """
    check_registration(model, alias)
    with progress_bar(console) as show:
        result = train(
            config,
            name,
            runs_uri=runs_uri or DEFAULT_RUNS_URI,
            workers=workers,
            extend=extend,
            on_progress=show,
            on_note=console.say,
        )
    version = None
    if model:
        with tempfile.TemporaryDirectory(prefix="mimic3d-generator-") as folder:
            fetched = model_uris.fetch(result.checkpoint_uri, Path(folder))
            last, metrics = result.last_measurement()
            with console.working("registering"):
                version = register_generator(
                    fetched / GENERATOR_FOLDER, model, result.run_id, metrics, step=last
                )
        console.say(f"registered {model} version {version}")
        if alias:
            console.say(promote(model, version, alias, on_note=console.say).line)
    return RegisteredTraining(result, version)
