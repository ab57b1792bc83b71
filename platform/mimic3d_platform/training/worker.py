"""A Ray Train worker of a run: trains on its share of every batch, from the last checkpoint to the end.

All ranks train, and measure where no processor is free for that (`background_metrics`); rank 0 also logs,
renders sample grids and stores checkpoints (`recorder`).
`worker_failures` says what happens when a worker fails, `stop_signals` how workers learn that they are about
to end, and `resume` where they begin.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import ray.train
import torch
from ray.train.torch import get_device

from mimic3d.losses.imitation import imitation_distance
from mimic3d.training.checkpoint import Progress
from mimic3d.training.trainer import Trainer
from mimic3d_platform.data.format.dataset import read_row_weights
from mimic3d_platform.data.stream.training_stream import Batch, TrainingStream
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.evaluation.metrics import Evaluator
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.training.recorder import RunRecorder
from mimic3d_platform.training.resume import Resumption, retry_with_note
from mimic3d_platform.training.run_identity import TrainingRun
from mimic3d_platform.training.run_state import RunState
from mimic3d_platform.training.stop_signals import StopSignal, StopSignals
from mimic3d_platform.training.worker_failures import FinalError, WorkerTerminated, cause_of, final_error

Result = TypeVar("Result")


@dataclass(frozen=True)
class WorkerArguments:
    """The arguments of each worker."""

    run: TrainingRun
    state: RunState
    background_metrics: bool
    """Measurements run beside the training, but for those at the ends of stages."""


def train_worker(arguments: WorkerArguments) -> None:
    """Trains until the run ends or is stopped; the function that Ray Train runs in each worker.

    A `FinalError` is recorded in the run's state, then raised: it has to fail this group of workers, or the
    other ranks would wait for this one. The group that Ray Train starts next finds it recorded and returns.
    """
    run, state = arguments.run, arguments.state
    if state.failure() is not None:
        return
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    signals = StopSignals(state.stop_requested, rank, world_size)
    recorder, device = None, get_device()
    try:
        if rank == 0:
            background_metrics = arguments.background_metrics
            recorder = RunRecorder(run, state, world_size, device, background_metrics=background_metrics)
        TrainingLoop(arguments, recorder, signals, device, rank, world_size).run()
    except BaseException as error:
        final = final_error(error, world_size)
        if final is not None:
            state.fail(str(final))
        else:
            state.record_cause(cause_of(error))
        if recorder is not None:
            recorder.flush_after_failure()
        if final is not None and final is not error:
            raise final from error
        raise
    finally:
        signals.close()


class TrainingLoop:
    """A rank's trainer, data and metrics, at the place where the run resumes.

    Args:
        recorder: of rank 0; None on the others.
    Raises:
        FinalError: the run cannot be resumed, or has failed too often.
    """

    def __init__(
        self,
        arguments: WorkerArguments,
        recorder: RunRecorder | None,
        signals: StopSignals,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> None:
        run, self.state, self.recorder, self.signals = arguments.run, arguments.state, recorder, signals
        self.background_metrics = arguments.background_metrics
        self.config = config = run.config
        if recorder is not None:
            recorder.publish("loading networks and data", 0)
        extractors = config.imitation.extractors or run.origin.perceptual
        perceptual = self.retry(lambda: imitation_distance(extractors, feature_weights.resolve))
        self.trainer = Trainer(config, perceptual, device, rank, world_size)
        store = CheckpointStore(run.runs_uri, run.name)
        resumption = Resumption(
            store, self.trainer, rank, signals.group, self.state.add_note, run.former_configs
        )
        try:
            resumed = resumption.restore(config, run.origin.start)
        except ValueError as error:
            raise FinalError(str(error)) from error
        self.progress: Progress = resumed.progress
        patience_s = config.data.patience_s
        self.evaluator = self.retry(
            lambda: Evaluator(
                config,
                run.origin.frechet,
                run.runs_uri,
                device,
                rank,
                world_size,
                patience_s=patience_s,
            )
        )
        self.stream = self.retry(
            lambda: TrainingStream(
                config.data.uri,
                global_batch=config.schedule.batch,
                rank=rank,
                world_size=world_size,
                seed=config.seed,
                nimg=self.trainer.nimg,
                cache_bytes=config.data.cache_bytes,
                loaders=config.data.loader_workers,
                max_bad_images=config.data.max_bad_images,
                patience_s=patience_s,
            )
        )
        self.label_weights: torch.Tensor | None = None
        if config.data.camera_balance:
            weights = self.retry(lambda: read_row_weights(config.data.uri))
            self.label_weights = None if weights is None else torch.from_numpy(weights)
        if recorder is not None:
            # What earlier workers of the run have half written; they are gone.
            resumption.retry(store.delete_incomplete)
            recorder.begin(resumed)
            if (failure := self.state.begin_attempt(self.trainer.nimg, self.trainer.world_size)) is not None:
                raise FinalError(failure)

    def run(self) -> None:
        """Trains to the run's end, or until it is stopped."""
        trainer, output = self.trainer, self.config.output
        if trainer.nimg == 0 and 0 not in self.progress.metrics:
            self.measure(ends_stage=False)
            self.render_samples()
            self.report_to_ray()
        # A log line has the newest value of each scalar since the line before: some are not of every step.
        scalars: dict[str, torch.Tensor] = {}
        steps, started, waited = 0, time.perf_counter(), self.stream.wait_seconds
        while not trainer.finished:
            stage = trainer.stage
            batch = self.next_batch()
            scalars |= trainer.step(batch.images, batch.cameras, self.evaluator.cameras, self.label_weights)
            steps += 1
            signal = self.signals.agreed()
            ends_stage = trainer.nimg in (self.config.stage1_nimg, self.config.total_nimg)
            saves = ends_stage or self.is_due(output.checkpoint_kimg) or signal != StopSignal.NONE
            measures = ends_stage or self.is_due(output.metric_kimg)
            samples = ends_stage or self.is_due(output.sample_kimg)
            # Counted in images, not in steps since the start: a resumed run has the same lines.
            logs = trainer.nimg // self.config.schedule.batch % output.log_steps == 0
            if not (logs or saves or measures or samples):
                continue
            seconds = time.perf_counter() - started
            self.progress.seconds += seconds
            images_per_second = steps * self.config.schedule.batch / seconds
            self.log_line(stage, scalars, images_per_second, (self.stream.wait_seconds - waited) / seconds)
            if samples:
                self.render_samples()
            if measures:
                self.measure(ends_stage=ends_stage)
            if self.recorder is not None:
                self.recorder.collect_metrics(trainer.nimg, wait=trainer.finished)
            if saves and self.recorder is not None:
                self.recorder.save(trainer, may_be_replaced=not ends_stage and signal == StopSignal.NONE)
            if measures or self.is_due(output.checkpoint_kimg):
                self.report_to_ray()
            if signal >= StopSignal.WORKER_TERMINATED and not trainer.finished:
                self.stop(signal)
                return
            scalars = {}
            steps, started, waited = 0, time.perf_counter(), self.stream.wait_seconds
        self.stream.close()
        if self.recorder is not None:
            self.recorder.finish(trainer.nimg)

    def next_batch(self) -> Batch:
        """The next batch.

        The stream has retried transient errors: what it raises, another attempt would meet too.
        """
        try:
            return next(self.stream)
        except UserError as error:
            raise FinalError(str(error)) from error

    def retry(self, action: Callable[[], Result]) -> Result:
        """The result of `action`, retried while storage does not answer, within `data.patience_s`."""
        return retry_with_note(action, self.state.add_note, self.config.data.patience_s)

    def is_due(self, kimg: float | None) -> bool:
        """Whether an interval of `kimg` thousand images ends here; False for no interval."""
        return kimg is not None and self.trainer.nimg % round(kimg * 1000) == 0

    def log_line(
        self, stage: int, scalars: dict[str, torch.Tensor], images_per_second: float, data_wait_share: float
    ) -> None:
        """Logs scalars and speed of the last steps; all ranks take part."""
        bad_images = self.bad_images()
        if self.recorder is not None:
            values = {name: float(value) for name, value in scalars.items()} | bad_images
            self.recorder.log_line(self.trainer, stage, values, images_per_second, data_wait_share)

    def bad_images(self) -> dict[str, float]:
        """The images that all ranks have replaced because they cannot be decoded, where that is allowed."""
        if self.config.data.max_bad_images == 0:
            return {}
        total = torch.tensor(float(self.stream.bad_images), device=self.trainer.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        return {"data/bad_images": float(total)}

    def measure(self, *, ends_stage: bool) -> None:
        """Measures both branches, or has them measured beside the training; all ranks take part.

        The checkpoint that ends a stage has its metrics: those are not measured beside it.
        """
        if self.background_metrics and not ends_stage and self.begin_in_background():
            return
        nimg = self.trainer.nimg
        if self.recorder is not None:
            self.recorder.publish("measuring", nimg)
        started = time.perf_counter()
        self.progress.metrics[nimg] = self.evaluator.measure(self.trainer.ema)
        if self.recorder is not None:
            seconds = time.perf_counter() - started
            self.recorder.log_metrics(self.progress.metrics[nimg], nimg, seconds)
            self.recorder.publish("measured", nimg)

    def begin_in_background(self) -> bool:
        """Begins to measure beside the training; False where an earlier measurement is still running.

        Rank 0 decides for all ranks.
        """
        begun = torch.tensor(self.recorder is not None and self.recorder.measure_in_background(self.trainer))
        if self.signals.group is not None:
            torch.distributed.broadcast(begun, src=0, group=self.signals.group)
        return bool(begun)

    def render_samples(self) -> None:
        """Logs a grid of samples of both branches (rank 0)."""
        if self.recorder is not None:
            self.recorder.render_samples(self.trainer, self.evaluator.cameras, self.evaluator.manifest)

    def report_to_ray(self) -> None:
        """Reports images and newest metrics to Ray Train, and Ray Tune above it; all ranks take part."""
        nimg = self.trainer.nimg
        newest = self.progress.metrics.get(max(self.progress.metrics, default=0), {})
        ray.train.report({"nimg": nimg, "kimg": nimg / 1000, **newest})

    def stop(self, signal: StopSignal) -> None:
        """Ends this attempt before the run's end; the checkpoint was handed over.

        Raises:
            WorkerTerminated: Ray Train has to start new workers.
        """
        nimg = self.trainer.nimg
        self.stream.close()
        if self.recorder is not None:
            self.recorder.stop(nimg)
        if signal == StopSignal.WORKER_TERMINATED:
            raise WorkerTerminated(f"a worker was terminated; the run is stored at {nimg} images")
        if self.recorder is not None:
            self.state.confirm_stop(nimg)
