"""Measures a run's metrics in a Ray task beside the training, where the cluster has a processor to spare.

    <run>/measuring/000400000.safetensors   the averaged generator that is being measured

One measurement runs at a time. Its generator is stored before any later checkpoint is, and deleted once a
checkpoint holds the metrics: a run that was stopped or has failed meanwhile measures it again. Ray Train's
own asynchronous validation is not used because it needs checkpoints that Ray Train itself stores, and an
attempt that fails loses what it was validating.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors.torch import load, save

from mimic3d.config import Config
from mimic3d.networks.generator import Generator, build_generator
from mimic3d.training.checkpoint import Progress
from mimic3d_platform import storage
from mimic3d_platform.cluster.tasks import BackgroundTask
from mimic3d_platform.errors import UserError, one_line
from mimic3d_platform.evaluation.metrics import Evaluator
from mimic3d_platform.training.run_identity import TrainingRun

FOLDER = "measuring"
SUFFIX = ".safetensors"
# At a run's end a measurement that has not begun, or is slow, is waited for this long.
END_PATIENCE_S = 120.0


@dataclass(frozen=True)
class _Measurement:
    """A measurement that runs: the images that it belongs to, the generator's weights, and the task."""

    nimg: int
    weights: bytes
    task: BackgroundTask[dict[str, float]]


class BackgroundMetrics:
    """The measurements of a run that its workers do not wait for; used by rank 0.

    `store` and `checkpoint_stored` are called by the thread that stores checkpoints.

    Args:
        device: of the training; a measurement takes a GPU where that is one.
        note: shows the user a line.
    """

    def __init__(self, run: TrainingRun, device: torch.device, note: Callable[[str], None]) -> None:
        self._run, self._device, self._note = run, device.type, note
        self._uri = storage.join(run.runs_uri, run.name, FOLDER)
        self._running: _Measurement | None = None
        self._unstored: dict[int, bytes] = {}
        """By images, the weights that storage does not have yet."""
        self._collected_at: dict[int, int] = {}
        """By images, the images of the run when their metrics were collected; while the weights are kept."""

    def resume(self, progress: Progress) -> None:
        """Takes up the measurement that ran when the run was stopped; forgets those of later images.

        Raises:
            UserError: storage does not answer; the same may be tried again.
        """
        for uri in storage.list_files(self._uri, suffix=SUFFIX):
            nimg = int(uri.rsplit("/", 1)[-1].removesuffix(SUFFIX))
            if nimg in progress.metrics or nimg > progress.nimg or progress.nimg == 0:
                storage.delete_tree(uri)
            else:
                self._start(nimg, storage.read_bytes(uri))

    def start(self, nimg: int, generator: Generator) -> bool:
        """Begins to measure a copy of the generator; returns False while an earlier one is measured."""
        if self._running is not None:
            return False
        weights = save({name: value.cpu().contiguous() for name, value in generator.state_dict().items()})
        self._unstored[nimg] = weights
        self._start(nimg, weights)
        return True

    def collect(self, now: int, *, wait: bool = False) -> tuple[int, dict[str, float]] | None:
        """The measurement that has ended, after the images that it belongs to; None for none.

        Args:
            now: images of the run.
            wait: for the measurement that still runs; after `END_PATIENCE_S` this process measures instead.
        """
        running = self._running
        if running is None:
            return None
        done = running.task.is_done(END_PATIENCE_S if wait else 0.0)
        if not done and not wait:
            return None
        self._running, self._collected_at[running.nimg] = None, now
        try:
            if done:
                return running.nimg, running.task.result()
            running.task.cancel()
        except Exception as error:  # What ails the metrics themselves is raised here, below.
            self._note(
                f"the metrics of {running.nimg} images are measured by the training's workers: "
                f"{one_line(error, 300)}"
            )
        return running.nimg, measure_weights(*self._arguments(running.weights))

    def store(self) -> None:
        """Stores the generators whose metrics the next checkpoint may lack.

        Raises:
            UserError: storage does not answer; the same may be tried again.
        """
        for nimg, weights in list(self._unstored.items()):
            storage.write_bytes(self._file(nimg), weights)
            del self._unstored[nimg]

    def checkpoint_stored(self, nimg: int) -> None:
        """Deletes the generators whose metrics the checkpoint at `nimg` images holds.

        One that cannot be deleted now is deleted when the run resumes.
        """
        for measured, collected_at in list(self._collected_at.items()):
            if collected_at <= nimg:
                del self._collected_at[measured]
                with contextlib.suppress(UserError):
                    storage.delete_tree(self._file(measured))

    def _start(self, nimg: int, weights: bytes) -> None:
        gpu = self._device == "cuda"
        task = BackgroundTask(measure_weights, *self._arguments(weights), gpu=gpu)
        self._running = _Measurement(nimg, weights, task)

    def _arguments(self, weights: bytes) -> tuple[Config, bytes, str, str, str]:
        run = self._run
        return run.config, weights, run.origin.frechet, run.runs_uri, self._device

    def _file(self, nimg: int) -> str:
        return storage.join(self._uri, f"{nimg:09d}{SUFFIX}")


def measure_weights(
    config: Config, weights: bytes, network: str, cache_uri: str, device: str
) -> dict[str, float]:
    """The metrics of a generator's weights, as `Evaluator` measures them in one process.

    Args:
        weights: its `state_dict` as safetensors.
        network, cache_uri, device: as `Evaluator`.
    """
    generator = build_generator(config)
    generator.load_state_dict(load(weights))
    generator.eval().requires_grad_(False).to(device)
    return Evaluator(config, network, cache_uri, device).measure(generator)
