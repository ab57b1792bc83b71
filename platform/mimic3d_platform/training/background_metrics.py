"""Measures a run's metrics in a Ray task beside the training, where the cluster has a processor to spare.

    <run>/measuring/000400000.safetensors   the averaged generator that is being measured

One measurement runs at a time. Its generator is stored before any later checkpoint is, and deleted once a
checkpoint holds the metrics: a run that was stopped or has failed meanwhile measures it again. Ray Train's
own asynchronous validation is not used because it needs checkpoints that Ray Train itself stores, and an
attempt that fails loses what it was validating.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection

from safetensors.torch import load, save

from mimic3d.config import Config
from mimic3d.networks.generator import Generator, build_generator
from mimic3d.training.checkpoint import Progress
from mimic3d_platform import storage
from mimic3d_platform.cluster.tasks import BackgroundTask
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation.metrics import Evaluator
from mimic3d_platform.training.run_identity import TrainingRun

FOLDER = "measuring"
SUFFIX = ".safetensors"
# At a run's end a measurement that has not begun, or is slow, is waited for this long.
END_PATIENCE_S = 120.0


class BackgroundMetrics:
    """The measurements of a run that its workers do not wait for; used by rank 0.

    Args:
        gpu: whether a measurement takes a GPU.
        note: shows the user a line.
    """

    def __init__(self, run: TrainingRun, gpu: bool, note: Callable[[str], None]) -> None:
        self._run, self._gpu, self._note = run, gpu, note
        self._uri = storage.join(run.runs_uri, run.name, FOLDER)
        self._nimg: int | None = None
        """Of the measurement that runs."""
        self._weights = b""
        self._task: BackgroundTask[dict[str, float]] | None = None
        self._storing: threading.Thread | None = None
        self._store_error: UserError | None = None

    def resume(self, progress: Progress) -> None:
        """Takes up the measurement that ran when the run was stopped; forgets those of later images.

        Raises:
            UserError: storage does not answer; the same may be tried again.
        """
        for uri in storage.list_files(self._uri, suffix=SUFFIX):
            nimg = int(uri.rsplit("/", 1)[-1].removesuffix(SUFFIX))
            if nimg > progress.nimg or nimg in progress.metrics or progress.nimg == 0 or self._task:
                storage.delete_tree(uri)
            else:
                self._start(nimg, storage.read_bytes(uri))

    def start(self, nimg: int, generator: Generator) -> bool:
        """Begins to measure a copy of the generator; returns False while an earlier one is measured."""
        if self._task is not None:
            return False
        weights = save({name: value.cpu().contiguous() for name, value in generator.state_dict().items()})
        self._start(nimg, weights)
        self._storing = threading.Thread(target=self._store, args=(nimg, weights), daemon=True)
        self._storing.start()
        return True

    def collect(self) -> tuple[int, dict[str, float]] | None:
        """The measurement that has ended, by the images that it belongs to; None for none."""
        if self._task is None or self._nimg is None or not self._task.is_done():
            return None
        nimg = self._nimg
        try:
            return nimg, self._task.result()
        except UserError as error:
            self._note(f"the metrics of {nimg} images are measured by the training's workers: {error}")
            return nimg, self._measure_here()
        finally:
            self._task, self._weights = None, b""

    def finish(self) -> tuple[int, dict[str, float]] | None:
        """Waits for the measurement that still runs; after `END_PATIENCE_S` this process does it instead."""
        if self._task is None or self._nimg is None:
            return None
        if self._task.is_done(END_PATIENCE_S):
            return self.collect()
        self._task.cancel()
        nimg, metrics = self._nimg, self._measure_here()
        self._task, self._weights = None, b""
        return nimg, metrics

    def wait_until_stored(self) -> None:
        """Returns once the generator that is being measured lies in storage.

        Raises:
            UserError: it could not be stored; the same may be tried again.
        """
        if self._storing is not None:
            self._storing.join()
        nimg, weights = self._nimg, self._weights
        if self._store_error is not None and nimg is not None and weights:
            storage.write_bytes(self._file(nimg), weights)
            self._store_error = None

    def forget(self, measured: Collection[int]) -> None:
        """Deletes the generators whose metrics a checkpoint holds; those that cannot be now are later."""
        with contextlib.suppress(UserError):
            for uri in storage.list_files(self._uri, suffix=SUFFIX):
                if int(uri.rsplit("/", 1)[-1].removesuffix(SUFFIX)) in measured:
                    storage.delete_tree(uri)

    def _start(self, nimg: int, weights: bytes) -> None:
        run = self._run
        self._nimg, self._weights, self._store_error = nimg, weights, None
        self._task = BackgroundTask(
            measure_weights, run.config, weights, run.origin.frechet, run.runs_uri, self._gpu, gpu=self._gpu
        )

    def _store(self, nimg: int, weights: bytes) -> None:
        try:
            storage.write_bytes(self._file(nimg), weights)
        except UserError as error:
            self._store_error = error

    def _file(self, nimg: int) -> str:
        return storage.join(self._uri, f"{nimg:09d}{SUFFIX}")

    def _measure_here(self) -> dict[str, float]:
        run = self._run
        return measure_weights(run.config, self._weights, run.origin.frechet, run.runs_uri, self._gpu)


def measure_weights(
    config: Config, weights: bytes, network: str, cache_uri: str, gpu: bool
) -> dict[str, float]:
    """The metrics of a generator's weights, as `Evaluator` measures them in one process.

    Args:
        weights: its `state_dict` as safetensors.
        network, cache_uri: as `Evaluator`.
    """
    device = "cuda" if gpu else "cpu"
    generator = build_generator(config)
    generator.load_state_dict(load(weights))
    generator.eval().requires_grad_(False).to(device)
    return Evaluator(config, network, cache_uri, device).measure(generator)
