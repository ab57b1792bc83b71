"""One Ray Train worker: its slice of every batch, from its place in the run to the end."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from mimic3d.config import Config, from_dict
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError

GRID_ROWS = 6
GRID_VIEWS = 4


class FinalError(UserError):
    """What another attempt of the same workers would meet again, until the user has mended it."""


def train_worker(job: dict[str, Any]) -> None:
    """What each worker runs; see `mimic3d_platform.training`.

    A `FinalError` fails the attempt, so that no rank waits for the one that met it; the attempt that Ray
    Train then starts finds it on the board and ends at once.

    Args:
        job: "config" as plain values, "runs_uri", "run_ids" of MLflow, "networks" by purpose,
            "threads" for PyTorch, "environment" (a reference in a list, so that Ray leaves it to us to
            fetch), "board".
    """
    import ray
    import torch
    from ray.train.torch import get_device

    if ray.get(job["board"].failure.remote()) is not None:
        return
    os.environ.update(ray.get(job["environment"][0]))
    os.environ["MIMIC3D_PATIENCE_S"] = str(job["config"]["data"]["patience_s"])
    torch.set_num_threads(job["threads"])
    context = ray.train.get_context()
    ranks = context.get_world_rank(), context.get_world_size()
    try:
        _Worker(from_dict(job["config"]), job, get_device(), *ranks).run()
    except FinalError as error:
        ray.get(job["board"].fail.remote(str(error)))
        raise


class _Worker:
    """The loop's parts; rank 0 also logs, draws and writes checkpoints."""

    def __init__(self, config: Config, job: dict[str, Any], device: Any, rank: int, world_size: int) -> None:
        import ray.train

        from mimic3d.checkpoints.training import Progress, load_checkpoint
        from mimic3d.losses.perceptual import PerceptualDistance
        from mimic3d.training.trainer import Trainer
        from mimic3d_platform import weights
        from mimic3d_platform.data.stream import TrainingStream, label_pool
        from mimic3d_platform.evaluation import Evaluator
        from mimic3d_platform.tracking import RunLogger

        self.config, self.rank = config, rank
        self.board, self.runs_uri = job["board"], job["runs_uri"]
        self.progress = Progress()
        self.speed: dict[str, float] = {}
        self.tell("loading networks and data", 0)
        name = job["networks"]["perceptual"]
        perceptual = PerceptualDistance.from_file(weights.resolve(name), name)
        self.trainer = Trainer(config, perceptual, device, rank, world_size)
        if (checkpoint := ray.train.get_checkpoint()) is not None:
            with checkpoint.as_directory() as folder:
                try:
                    self.progress = load_checkpoint(folder, self.trainer)
                except ValueError as error:
                    raise FinalError(str(error).replace(str(folder), checkpoint.path)) from error
        self.evaluator = Evaluator(
            config, job["networks"]["frechet"], self.runs_uri, device, rank, world_size
        )
        self.stream = TrainingStream(
            config.data.uri,
            global_batch=config.schedule.batch,
            rank=rank,
            world_size=world_size,
            seed=config.seed,
            nimg=self.trainer.nimg,
            cache_bytes=config.data.cache_bytes,
            loaders=config.data.loader_workers,
            max_bad_images=config.data.max_bad_images,
        )
        self.label_weights = label_pool(config.data.uri)[1] if config.data.camera_balance else None
        ids = job["run_ids"]
        self.log = {key: RunLogger(ids[key]) for key in ids} if rank == 0 else {}
        if rank == 0 and self.trainer.nimg:
            self.log["run"].log_metrics({"resumed_from": self.trainer.nimg}, self.trainer.nimg)

    def run(self) -> None:
        """Trains until the end, measuring and saving at the ends of stages, saving and drawing in between."""
        trainer, output = self.trainer, self.config.output
        if trainer.nimg == 0 and 0 not in self.progress.metrics:
            self.measure()
            self.draw()
        steps_since, started, waited = 0, time.perf_counter(), self.stream.wait_seconds
        while not trainer.finished:
            stage = trainer.stage
            batch = next(self.stream)
            scalars = trainer.step(batch.images, batch.cameras, self.evaluator.cameras, self.label_weights)
            steps_since += 1
            ends_stage = trainer.nimg in (self.config.stage1_nimg, self.config.total_nimg)
            pauses = ends_stage or self.due(output.checkpoint_kimg) or self.due(output.sample_kimg)
            if steps_since >= output.log_steps or pauses:
                seconds = time.perf_counter() - started
                wait = (self.stream.wait_seconds - waited) / seconds
                self.progress.seconds += seconds
                self.record(stage, scalars, steps_since * self.config.schedule.batch / seconds, wait)
                if self.due(output.sample_kimg) or ends_stage:
                    self.draw()
                if ends_stage:
                    self.measure()
                if self.due(output.checkpoint_kimg) or ends_stage:
                    self.save()
                steps_since, started, waited = 0, time.perf_counter(), self.stream.wait_seconds
        self.stream.close()
        self.tell("finished", trainer.nimg)
        for logger in self.log.values():
            logger.flush()

    def due(self, kimg: float) -> bool:
        """Whether an interval ends here."""
        return self.trainer.nimg % round(kimg * 1000) == 0

    def record(self, stage: int, scalars: dict[str, Any], rate: float, wait: float) -> None:
        """Logs one line of scalars and tells the board."""
        self.tell(f"stage {stage}", self.trainer.nimg, images_per_second=rate, data_wait=wait)
        if self.rank == 0:
            values = {name: float(value) for name, value in scalars.items()}
            values |= {"speed/images_per_second": rate, "speed/data_wait_share": wait}
            self.log[f"stage{stage}"].log_metrics(values, self.trainer.nimg)

    def measure(self) -> None:
        """Measures both branches; all ranks take part."""
        nimg = self.trainer.nimg
        self.tell("measuring", nimg)
        self.progress.metrics[nimg] = self.evaluator.measure(self.trainer.ema)
        if self.rank == 0:
            self.log["run"].log_metrics(self.progress.metrics[nimg], nimg)
        self.tell("measured", nimg)

    def draw(self) -> None:
        """A grid of both branches from three sides, the reals beside them."""
        if self.rank != 0:
            return
        import torch

        from mimic3d.export.cameras import front, turntable
        from mimic3d.export.grid import sample_grid
        from mimic3d.training.randomness import counter_generator
        from mimic3d_platform.data.reader import RowReader

        generator, device = self.trainer.ema, self.trainer.device
        source = counter_generator(0, "grid")
        z = torch.randn(GRID_ROWS, generator.config.z_dim, generator=source).to(device)
        picks = torch.randperm(len(self.evaluator.cameras), generator=source)[:GRID_ROWS]
        reals, _ = RowReader(
            self.config.data.uri, self.evaluator.manifest, self.config.data.cache_bytes
        ).fetch(picks.numpy())
        views = turntable(self.config.camera, GRID_VIEWS).to(device)
        with torch.no_grad():
            w = generator.mapping(z, front(self.config.camera).to(device).expand(GRID_ROWS, -1))
            grid = sample_grid(generator, w, views, reals=torch.from_numpy(reals))
        self.log["run"].log_image(grid, f"samples/{self.trainer.nimg:09d}.png")

    def save(self) -> None:
        """Reports a checkpoint to Ray Train, which puts it into the run's folder; all ranks take part."""
        import ray.train

        self.tell("saving a checkpoint", self.trainer.nimg)
        if self.rank != 0:
            ray.train.report({"nimg": self.trainer.nimg})
            return
        folder = self.write_checkpoint()
        try:
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            with storage.translate_errors(self.runs_uri, "store a checkpoint in"):
                ray.train.report({"nimg": self.trainer.nimg}, checkpoint=checkpoint)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def write_checkpoint(self) -> Path:
        """A new folder, below TMPDIR, that holds the run as it is now."""
        from safetensors import SafetensorError

        from mimic3d.checkpoints.training import save_checkpoint

        place = Path(tempfile.gettempdir())
        try:
            folder = Path(tempfile.mkdtemp(prefix="mimic3d-checkpoint-", dir=place))
            try:
                return save_checkpoint(folder, self.trainer, self.progress)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or "the write was cut short, the disk may be full"
            raise FinalError(
                f"cannot write a checkpoint below {place}: {reason}; free some space there or set TMPDIR to "
                "another folder, then run the same command again"
            ) from error

    def tell(self, doing: str, nimg: int, **speed: Any) -> None:
        """Puts a report on the board; nobody waits for it. The last speed stands until there is another."""
        if self.rank != 0:
            return
        from mimic3d_platform.progress import Report

        self.speed |= speed
        rate = self.speed.get("images_per_second")
        left = (self.config.total_nimg - nimg) / rate if rate else None
        report = Report(
            doing,
            nimg,
            self.config.total_nimg,
            metrics=dict(self.progress.metrics),
            train_seconds=self.progress.seconds,
            seconds_left=left,
            **self.speed,
        )
        self.board.put.remote(report)
