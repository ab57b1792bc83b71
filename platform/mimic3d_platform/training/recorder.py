"""Rank 0's duties beside training: progress, log lines, sample grids and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from mimic3d.config import fingerprint
from mimic3d.training.checkpoint import Progress, take_snapshot
from mimic3d.training.trainer import Trainer
from mimic3d_platform import storage
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import CheckpointStore, KeepPolicy, StoredCheckpoint
from mimic3d_platform.training.background_metrics import BackgroundMetrics
from mimic3d_platform.training.checkpoint_writer import PATIENCE_S, CheckpointWriter
from mimic3d_platform.training.divergence import Divergence, weight_not_finite
from mimic3d_platform.training.progress import ProgressReport, TimeEstimate
from mimic3d_platform.training.resume import Resumed, retry_with_note
from mimic3d_platform.training.run_identity import TrainingRun
from mimic3d_platform.training.run_log import RunLog
from mimic3d_platform.training.run_state import RunState
from mimic3d_platform.training.sample_grid import render_sample_grid
from mimic3d_platform.training.worker_failures import FinalError

# MLflow is waited for this long at the end of a run.
END_PATIENCE_S = 600.0
# And this long when a run is stopped or fails.
STOP_PATIENCE_S = 20.0


class RunRecorder:
    """Writes down what a run does; exists on rank 0.

    Args:
        device: of the training.
        background_metrics: measurements run beside the training, but for those at the ends of stages.
    """

    def __init__(
        self,
        run: TrainingRun,
        state: RunState,
        world_size: int,
        device: torch.device,
        *,
        background_metrics: bool,
    ) -> None:
        self._run, self._state, self._world_size, self._device = run, state, world_size, device
        self._progress = Progress()
        self._estimate = TimeEstimate(run.config, waits_for_metrics=not background_metrics)
        self._images_per_second = 0.0
        self._data_wait_share = 0.0
        self._log = RunLog(run.mlflow, run.config, storage.join(run.runs_uri, run.name))
        self._background = BackgroundMetrics(run, device, state.add_note)
        self._writer = CheckpointWriter(
            CheckpointStore(run.runs_uri, run.name),
            KeepPolicy.of(run.config),
            before=self._before_checkpoint,
            on_stored=self._on_stored,
            on_error=self._note_storage_error,
        )

    def begin(self, resumed: Resumed) -> None:
        """Continues the log where the run resumes, and logs on what hardware it does."""
        self._progress = resumed.progress
        nimg = resumed.progress.nimg
        self._retry(lambda: self._log.resume(nimg if resumed.checkpoint is not None else None))
        self._retry(lambda: self._background.resume(resumed.progress))
        self._log.describe(self._device, self._world_size, nimg, resumed.checkpoint)

    def publish(self, phase: str, nimg: int, *, wait: bool = False) -> None:
        """Publishes a progress report, with the speed of the last log line.

        Args:
            wait: return only once the driver can read it.
        """
        left, rough = self._estimate.left(nimg, parts_done=phase != "measuring")
        report = ProgressReport(
            phase,
            nimg,
            self._run.config.total_nimg,
            images_per_second=self._images_per_second,
            seconds_left=left,
            seconds_left_is_rough=rough,
            train_seconds=self._progress.seconds,
            data_wait_share=self._data_wait_share,
            metrics=dict(self._progress.metrics),
        )
        self._state.publish(report, wait=wait)

    def log_line(
        self,
        trainer: Trainer,
        stage: int,
        scalars: Mapping[str, float],
        images_per_second: float,
        data_wait_share: float,
    ) -> None:
        """Logs and publishes one line of scalars.

        Args:
            stage: that the steps since the last line belong to.
        Raises:
            FinalError: the line shows that the training has diverged for good.
        """
        self._images_per_second = images_per_second
        self._estimate.stepped(stage, images_per_second)
        self._data_wait_share = data_wait_share
        self.publish(f"stage {stage}", trainer.nimg)
        speed = {"images_per_second": images_per_second, "data_wait_share": data_wait_share}
        divergence = self._log.line(trainer, stage, scalars, speed)
        if divergence is not None:
            self._handle_divergence(divergence, trainer.nimg)

    def log_metrics(self, values: Mapping[str, float], nimg: int, seconds: float) -> None:
        """Logs a measurement of the run, which took `seconds`."""
        self._log.metrics(values, nimg)
        self._estimate.took("measuring", seconds)

    def measure_in_background(self, trainer: Trainer) -> bool:
        """Begins to measure beside the training; False where an earlier measurement is still running."""
        return self._background.start(trainer.nimg, trainer.ema)

    def collect_metrics(self, nimg: int, *, wait: bool) -> None:
        """Logs the measurement beside the training that has ended, at the images that it belongs to.

        Args:
            nimg: of the run now.
            wait: for the measurement that still runs.
        """
        if wait:
            self.publish("measuring", nimg)
        found = self._background.collect(nimg, wait=wait)
        if found is not None:
            measured, values = found
            self._progress.metrics[measured] = values
            self._log.metrics(values, nimg, step=measured)

    def render_samples(self, trainer: Trainer, cameras: torch.Tensor, manifest: Manifest) -> None:
        """Logs a grid of samples of both branches."""
        self.publish("rendering samples", trainer.nimg)
        started = time.perf_counter()
        grid = render_sample_grid(trainer.ema, self._run.config, cameras, manifest)
        self._log.picture(grid, trainer.nimg)
        self._estimate.took("samples", time.perf_counter() - started)
        self.publish(f"stage {trainer.stage}", trainer.nimg)

    def save(self, trainer: Trainer, *, may_be_replaced: bool) -> None:
        """Hands a copy of the run to the checkpoint writer; waits only for the copying.

        Args:
            may_be_replaced: a later checkpoint may take its place while storage is slow; otherwise this waits
                until the writer has begun with it.
        Raises:
            FinalError: a weight is not finite, or an earlier checkpoint could not be stored.
        """
        started, nimg = time.perf_counter(), trainer.nimg
        snapshot = take_snapshot(trainer, self._progress)
        weight = snapshot.not_finite()
        if weight is not None:
            self._handle_divergence(weight_not_finite(weight, nimg), nimg)
        facts = {
            "config": fingerprint(self._run.config),
            "data": self._run.origin.data,
            "workers": self._world_size,
            "metrics": self._progress.metrics.get(nimg, {}),
        }
        try:
            self._writer.save(snapshot, facts, may_be_replaced=may_be_replaced)
        except UserError as error:
            raise FinalError(str(error)) from error
        self._log.metrics({"checkpoint/stall_seconds": time.perf_counter() - started}, nimg)

    def finish(self, nimg: int) -> None:
        """Waits until the last checkpoint and the log are stored and MLflow has taken everything.

        Raises:
            FinalError: one of them does not answer.
        """
        self._drain(nimg)
        self._store_log()
        self.publish("waiting for MLflow", nimg)
        try:
            self._log.flush(END_PATIENCE_S)
        except UserError as error:
            if self._log.waiting:
                raise FinalError(str(error)) from error
            # MLflow refuses an entry, which fails no run.
            self._state.add_note(str(error))
        self._store_log()
        self.publish("finished", nimg, wait=True)

    def stop(self, nimg: int) -> None:
        """Waits until the last checkpoint is stored, and for a while for MLflow.

        Raises:
            FinalError: the checkpoint could not be stored.
        """
        self._drain(nimg)
        self._log.flush_and_save(STOP_PATIENCE_S)
        self.publish("stopped", nimg, wait=True)

    def flush_after_failure(self) -> None:
        """Sends and stores what was logged, if that works soon."""
        self._log.flush_and_save(STOP_PATIENCE_S)

    def _before_checkpoint(self) -> None:
        self._background.store()
        self._log.save()

    def _on_stored(self, checkpoint: StoredCheckpoint, seconds: float) -> None:
        self._log.stored(checkpoint, seconds)
        self._background.checkpoint_stored(checkpoint.nimg)

    def _drain(self, nimg: int) -> None:
        self.publish("storing the last checkpoint", nimg)
        try:
            self._writer.drain()
        except UserError as error:
            raise FinalError(str(error)) from error

    def _store_log(self) -> None:
        try:
            self._retry(self._log.save)
        except UserError as error:
            raise FinalError(str(error)) from error

    def _retry(self, action: Callable[[], None]) -> None:
        retry_with_note(action, self._state.add_note, PATIENCE_S)

    def _handle_divergence(self, divergence: Divergence, nimg: int) -> None:
        """Tags the run and notifies the user; raises a `FinalError` where training on is of no use."""
        self._log.diverged(divergence, nimg)
        self._state.add_note(f"the training has diverged ({divergence.kind}): {divergence.explanation}")
        if divergence.ends_run:
            raise FinalError(f"the training diverged ({divergence.kind}): {divergence.explanation}")

    def _note_storage_error(self, line: str) -> None:
        self._state.add_note(f"a checkpoint waits to be stored, the training continues meanwhile: {line}")
