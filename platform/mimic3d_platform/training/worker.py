"""One Ray Train worker: its slice of every batch, from its place in the run to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from mimic3d.config import Config, ConfigError, fingerprint
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.divergence import Divergence, weight_not_finite
from mimic3d_platform.training.restore import Resumption, retry_with_note
from mimic3d_platform.training.runs import Origin

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

GRID_ROWS = 6
GRID_VIEWS = 4
FAILURE_FLUSH_S = 20.0


class FinalError(UserError):
    """What another attempt of the same workers would meet again, until the user has mended it."""


class WorkerTerminated(RuntimeError):
    """A worker was told to end; the run is stored, and goes on in new workers."""


@dataclass(frozen=True)
class WorkerArguments:
    """What each worker of a run is started with."""

    config: Config
    name: str
    runs_uri: str
    origin: Origin
    run_ids: Mapping[str, str]
    """Of MLflow: "run", and "stage1" and "stage2" as the config has them."""
    board: Any


def train_worker(arguments: WorkerArguments) -> None:
    """What each worker runs; see `mimic3d_platform.training`.

    A `FinalError` fails the attempt, so that no rank waits for the one that met it; the attempt that Ray
    Train then starts finds it on the board and ends at once.
    """
    import ray
    from ray.train.torch import get_device

    board = arguments.board
    if ray.get(board.failure.remote()) is not None:
        return
    context = ray.train.get_context()
    worker = _Worker(arguments, get_device(), context.get_world_rank(), context.get_world_size())
    try:
        worker.prepare()
        worker.run()
    except BaseException as error:
        final = _final(error, context.get_world_size())
        if final is not None:
            ray.get(board.fail.remote(str(final)))
        else:
            ray.get(board.cause.remote(_cause(error)))
        worker.give_up()
        if final is not None and final is not error:
            raise final from error
        raise


class _Worker:
    """The loop's parts; rank 0 also logs, draws and writes checkpoints."""

    def __init__(self, arguments: WorkerArguments, device: torch.device, rank: int, world_size: int) -> None:
        self.config, self.origin, self.device = arguments.config, arguments.origin, device
        self.name, self.run_ids = arguments.name, arguments.run_ids
        self.rank, self.world_size = rank, world_size
        self.board, self.runs_uri = arguments.board, arguments.runs_uri
        self.speed: dict[str, float] = {}
        self.speed_stage = 0
        self.log: Any = None
        self.watch: Any = None

    def prepare(self) -> None:
        """Networks, the place in the run, data and logs."""
        import ray

        from mimic3d.losses.imitation import imitation_distance
        from mimic3d.training.checkpoint import Progress
        from mimic3d.training.trainer import Trainer
        from mimic3d_platform.data.format.dataset import read_row_weights
        from mimic3d_platform.data.stream.training_stream import TrainingStream
        from mimic3d_platform.evaluation import feature_weights
        from mimic3d_platform.evaluation.metrics import Evaluator
        from mimic3d_platform.models.checkpoints import CheckpointStore, KeepPolicy
        from mimic3d_platform.training.checkpoint_writer import CheckpointWriter
        from mimic3d_platform.training.run_log import RunLog
        from mimic3d_platform.training.stop_signals import NoticeWatch

        config, rank, world_size = self.config, self.rank, self.world_size
        self.progress = Progress()
        self.tell("loading networks and data", 0)
        self.watch = NoticeWatch(self.board, rank, world_size)
        name = self.origin.perceptual
        perceptual = self.retry(
            lambda: imitation_distance(config.imitation.extractors or name, feature_weights.resolve)
        )
        self.trainer = Trainer(config, perceptual, self.device, rank, world_size)
        self.store = CheckpointStore(self.runs_uri, self.name)
        resumption = Resumption(self.store, self.trainer, rank, self.watch.group, self.note)
        try:
            found = resumption.restore(config, self.origin.start)
        except ValueError as error:
            raise FinalError(str(error)) from error
        self.progress = found.progress
        self.evaluator = self.retry(
            lambda: Evaluator(
                config,
                self.origin.frechet,
                self.runs_uri,
                self.device,
                rank,
                world_size,
                patience_s=config.data.patience_s,
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
                patience_s=config.data.patience_s,
            )
        )
        self.label_weights = None
        if config.data.camera_balance:
            import torch

            weights = self.retry(lambda: read_row_weights(config.data.uri))
            self.label_weights = None if weights is None else torch.from_numpy(weights)
        if rank == 0:
            self.writer = CheckpointWriter(self.store, KeepPolicy.of(config), self.note_storage)
            # The workers before these are gone: what they had half written is nobody's.
            resumption.retry(self.store.delete_incomplete)
            self.log = RunLog(self.run_ids, config)
            self.log.restore(found.pending)
            self.log.describe(self.device, world_size, self.trainer.nimg, found.checkpoint)
            failure = ray.get(self.board.begin.remote(self.trainer.nimg))
            if failure is not None:
                raise FinalError(failure)

    def run(self) -> None:
        """Trains until the end, measuring, saving and drawing at the ends of stages and in between."""
        from mimic3d_platform.training.stop_signals import Notice

        trainer, output = self.trainer, self.config.output
        if trainer.nimg == 0 and 0 not in self.progress.metrics:
            self.measure()
            self.draw()
            self.report()
        # A line holds the newest of each scalar since the line before: some are not of every step.
        scalars: dict[str, Any] = {}
        steps_since, started, waited = 0, time.perf_counter(), self.stream.wait_seconds
        while not trainer.finished:
            stage = trainer.stage
            batch = self.next_batch()
            scalars |= trainer.step(batch.images, batch.cameras, self.evaluator.cameras, self.label_weights)
            steps_since += 1
            notice = self.watch.agreed()
            ends_stage = trainer.nimg in (self.config.stage1_nimg, self.config.total_nimg)
            saves = ends_stage or self.due(output.checkpoint_kimg) or notice != Notice.NONE
            measures = ends_stage or self.due(output.metric_kimg)
            # By images, not by steps since the start: a resumed run has the same lines.
            logs = trainer.nimg // self.config.schedule.batch % output.log_steps == 0
            if logs or saves or measures or self.due(output.sample_kimg):
                seconds = time.perf_counter() - started
                wait = (self.stream.wait_seconds - waited) / seconds
                self.progress.seconds += seconds
                self.record(stage, scalars, steps_since * self.config.schedule.batch / seconds, wait)
                if ends_stage or self.due(output.sample_kimg):
                    self.draw()
                if measures:
                    self.measure()
                if saves:
                    self.save(must=ends_stage or notice != Notice.NONE)
                if measures or self.due(output.checkpoint_kimg):
                    self.report()
                if notice in (Notice.STOP, Notice.WORKER_TERMINATES) and not trainer.finished:
                    self.leave(notice)
                    return
                scalars = {}
                steps_since, started, waited = 0, time.perf_counter(), self.stream.wait_seconds
        self.close("finished")

    def next_batch(self) -> Any:
        """The stream has retried transient errors: what it raises, another attempt would meet too."""
        try:
            return next(self.stream)
        except UserError as error:
            raise FinalError(str(error)) from error

    def retry(self, action: Callable[[], Result]) -> Result:
        """The result of `action`, retried while storage does not answer, within `data.patience_s`."""
        return retry_with_note(action, self.note, self.config.data.patience_s)

    def due(self, kimg: float | None) -> bool:
        """Whether an interval ends here; never one that there is not."""
        return kimg is not None and self.trainer.nimg % round(kimg * 1000) == 0

    def record(self, stage: int, scalars: dict[str, Any], rate: float, wait: float) -> None:
        """Logs one line of scalars, tells the board, and sees whether the training has gone wrong."""
        self.speed_stage = stage
        self.tell(f"stage {stage}", self.trainer.nimg, images_per_second=rate, data_wait=wait)
        bad_images = self.bad_images()
        if self.rank != 0:
            return
        values = {name: float(value) for name, value in scalars.items()} | bad_images
        speed = {"images_per_second": rate, "data_wait_share": wait}
        divergence = self.log.line(self.trainer, stage, values, speed)
        if divergence is not None:
            self.diverged(divergence)

    def diverged(self, divergence: Divergence) -> None:
        """Tags the run and tells the user; ends the run where going on is of no use."""
        self.log.diverged(divergence)
        self.note(f"the training has gone wrong ({divergence.kind}): {divergence.explanation}")
        if divergence.hopeless:
            raise FinalError(f"the training diverged ({divergence.kind}): {divergence.explanation}")

    def bad_images(self) -> dict[str, float]:
        """How many images all ranks have had to replace, where that is allowed; all ranks take part."""
        if self.config.data.max_bad_images == 0:
            return {}
        import torch

        total = torch.tensor(float(self.stream.bad_images), device=self.trainer.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        return {"data/bad_images": float(total)}

    def measure(self) -> None:
        """Measures both branches; all ranks take part."""
        nimg = self.trainer.nimg
        self.tell("measuring", nimg)
        self.progress.metrics[nimg] = self.evaluator.measure(self.trainer.ema)
        if self.rank == 0:
            self.log.metrics(self.progress.metrics[nimg], nimg)
        self.tell("measured", nimg)

    def draw(self) -> None:
        """A grid of both branches from three sides, the reals beside them."""
        if self.rank != 0:
            return
        import torch

        from mimic3d.export.grid import render_grid
        from mimic3d.export.orbits import front, turntable
        from mimic3d.randomness import counter_generator
        from mimic3d_platform.data.stream.row_reader import RowReader

        generator, device = self.trainer.ema, self.trainer.device
        source = counter_generator(0, "grid")
        z = torch.randn(GRID_ROWS, generator.config.z_dim, generator=source).to(device)
        picks = torch.randperm(len(self.evaluator.cameras), generator=source)[:GRID_ROWS]
        reals, _ = RowReader(
            self.config.data.uri,
            self.evaluator.manifest,
            self.config.data.cache_bytes,
            patience_s=self.config.data.patience_s,
        ).read(picks.numpy())
        views = turntable(self.config.camera, GRID_VIEWS).to(device)
        with torch.no_grad():
            w = generator.mapping(z, front(self.config.camera).to(device).expand(GRID_ROWS, -1))
            grid = render_grid(generator, w, views, reals=torch.from_numpy(reals))
        self.log.picture(grid, self.trainer.nimg)

    def save(self, must: bool) -> None:
        """Hands a copy of the run to the writer; only the copying, and a `must`, is waited for."""
        if self.rank != 0:
            return
        from mimic3d.training.checkpoint import take_snapshot
        from mimic3d_platform.training.run_log import PENDING

        started, nimg = time.perf_counter(), self.trainer.nimg
        snapshot = take_snapshot(self.trainer, self.progress)
        odd = snapshot.not_finite()
        if odd is not None:
            self.diverged(weight_not_finite(odd, nimg))
        facts = {
            "config": fingerprint(self.config),
            "data": self.origin.data,
            "workers": self.world_size,
            "metrics": self.progress.metrics.get(nimg, {}),
        }
        try:
            self.writer.save(snapshot, facts, {PENDING: self.log.pending()}, self.stored, must)
        except UserError as error:
            raise FinalError(str(error)) from error
        self.log.metrics({"checkpoint/stall_seconds": time.perf_counter() - started}, nimg)

    def stored(self, checkpoint: Any) -> None:
        """Says where a checkpoint lies; called in the writer's thread."""
        self.log.stored(checkpoint, self.writer.stored_seconds)

    def report(self) -> None:
        """Tells Ray Train, and Ray Tune above it, how far the run is; all ranks take part."""
        import ray.train

        nimg = self.trainer.nimg
        measured = self.progress.metrics.get(max(self.progress.metrics, default=0), {})
        ray.train.report({"nimg": nimg, "kimg": nimg / 1000, **measured})

    def leave(self, notice: Any) -> None:
        """Ends this attempt before the run's end, with all of it stored."""
        import ray

        from mimic3d_platform.training.stop_signals import Notice

        nimg = self.trainer.nimg
        self.close("stopped")
        if notice == Notice.STOP:
            if self.rank == 0:
                ray.get(self.board.stopped.remote(nimg))
            return
        raise WorkerTerminated(f"a worker was told to end; the run is stored at {nimg} images")

    def close(self, doing: str) -> None:
        """Waits until the last checkpoint is stored and MLflow has all."""
        from mimic3d_platform.training.run_log import END_PATIENCE_S

        self.stream.close()
        self.watch.close()
        if self.rank != 0:
            return
        self.tell("storing the last checkpoint", self.trainer.nimg)
        try:
            self.writer.drain()
            if doing == "finished":
                self.tell("waiting for MLflow", self.trainer.nimg)
                self.flush(END_PATIENCE_S)
            else:
                self.log.try_to_flush(FAILURE_FLUSH_S)
        except UserError as error:
            raise FinalError(str(error)) from error
        self.tell(doing, self.trainer.nimg, wait=True)

    def flush(self, patience: float) -> None:
        """Waits until MLflow has all; what it refuses is told, and does not fail the run."""
        try:
            self.log.flush(patience)
        except UserError as error:
            if self.log.waiting:
                raise
            self.note(str(error))

    def give_up(self) -> None:
        """Sends what the log holds, as far as that goes quickly."""
        if self.watch is not None:
            self.watch.close()
        if self.log is not None:
            self.log.try_to_flush(FAILURE_FLUSH_S)

    def note(self, line: str) -> None:
        """Tells the user, once."""
        self.board.note.remote(line)

    def note_storage(self, line: str) -> None:
        """Tells the user that a checkpoint waits for storage."""
        self.note(f"a checkpoint waits to be stored, the training goes on meanwhile: {line}")

    def tell(self, doing: str, nimg: int, wait: bool = False, **speed: Any) -> None:
        """Puts a report on the board; nobody waits for it unless told to. The last speed stands until there
        is another."""
        if self.rank != 0:
            return
        import ray

        from mimic3d_platform.training.progress import Report, time_left

        self.speed |= speed
        left, at_least = time_left(
            self.config, nimg, self.speed_stage, self.speed.get("images_per_second", 0.0)
        )
        report = Report(
            doing,
            nimg,
            self.config.total_nimg,
            metrics=dict(self.progress.metrics),
            train_seconds=self.progress.seconds,
            seconds_left=left,
            at_least=at_least,
            **self.speed,
        )
        told = self.board.put.remote(report)
        if wait:
            ray.get(told)


def _final(error: BaseException, world_size: int) -> FinalError | None:
    """The error as one that no further attempt would mend, if it is of that kind."""
    import torch

    if isinstance(error, FinalError):
        return error
    if isinstance(error, ConfigError):
        return FinalError(str(error))
    memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
    if memory:
        return FinalError(
            f"a worker ran out of memory ({(str(error).splitlines() or ['of the CPU'])[0][:120]}): raise "
            f"schedule.accumulate, use more workers than {world_size}, or a smaller schedule.batch"
        )
    return None


def _cause(error: BaseException) -> str:
    """One line on an error that another attempt may not meet."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0][:300] if lines else type(error).__name__
    lost = ("connection closed by peer", "connection reset", "gloo", "nccl", "socket")
    if not isinstance(error, UserError) and any(word in line.lower() for word in lost):
        return "another worker died, as it does when memory runs out"
    return line
