"""The log of a run: losses, schedules, speed, memory, sample grids, checkpoints, divergence.

Each entry is a line in the run's folder (`metrics_file`) and goes to MLflow. The lines are stored before each
checkpoint, so that a run which resumes from it sends MLflow what it has missed.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Mapping

import torch
from PIL.Image import Image

from mimic3d.config import Config
from mimic3d.training.schedules import blur_sigma, ema_decay, pose_swap_probability, pretrained
from mimic3d.training.trainer import Trainer
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import StoredCheckpoint
from mimic3d_platform.tracking.logger import Entry, File, Metrics, RunLogger, Tag
from mimic3d_platform.tracking.staged_run import StagedRun
from mimic3d_platform.tracking.tags import STAGE1_DIGEST_TAG, STAGE1_TAG
from mimic3d_platform.training.divergence import Divergence, DivergenceDetector
from mimic3d_platform.training.metrics_file import LogLine, MetricsFile
from mimic3d_platform.training.system_metrics import SystemMetrics, hardware


class RunLog:
    """Logs a run and its stages.

    Args:
        mlflow: the run in MLflow; a stage's is started by the first entry of the stage.
        run_uri: the run's folder.
    """

    def __init__(self, mlflow: StagedRun, config: Config, run_uri: str) -> None:
        self._config = config
        self._loggers = {"run": RunLogger(mlflow.run_id)}
        self._loggers |= {stage: RunLogger(run.start) for stage, run in mlflow.stages.items()}
        self._file = MetricsFile(run_uri)
        self._sent_before: dict[str, int] | None = None
        """Lines that MLflow had taken when this attempt began, by stage; None before `resume`."""
        self._adding = threading.Lock()
        self._system = SystemMetrics()
        self._detector = DivergenceDetector()

    def resume(self, nimg: int | None) -> None:
        """Continues the log of a run that resumes at `nimg`, or begins it anew where that is None.

        Raises:
            UserError: storage does not answer; the same may be tried again.
        """
        # In stage 2 the imitation's first values, which it is compared with, were those of another attempt.
        self._detector = DivergenceDetector(imitation=nimg is None or nimg <= self._config.stage1_nimg)
        self._sent_before, missing = self._file.resume(nimg)
        for line in missing:
            if line.stage in self._loggers:
                self._loggers[line.stage].add(line.entry)

    def save(self) -> None:
        """Stores the lines of all entries so far; does nothing before `resume`.

        Raises:
            UserError: storage does not answer; the same may be tried again.
        """
        if (before := self._sent_before) is None:
            return
        self._file.save(
            {stage: before.get(stage, 0) + logger.taken for stage, logger in self._loggers.items()}
        )

    def describe(
        self, device: torch.device, world_size: int, nimg: int, checkpoint: StoredCheckpoint | None
    ) -> None:
        """Logs the hardware that the run trains on from here, and where it resumes."""
        self.tag("hardware", hardware(device, world_size), nimg)
        self.tag("workers", str(world_size), nimg)
        if checkpoint is not None:
            self.metrics({"resumed_from": nimg}, nimg)
            self._tag_stage1(checkpoint)

    def stored(self, checkpoint: StoredCheckpoint, seconds: float) -> None:
        """Logs where the newest checkpoint lies, and how long writing and storing it took."""
        self.tag("checkpoint", checkpoint.uri, checkpoint.nimg)
        self.metrics({"checkpoint/store_seconds": seconds}, checkpoint.nimg)
        self._tag_stage1(checkpoint)

    def metrics(
        self, values: Mapping[str, float], nimg: int, stage: str = "run", *, step: int | None = None
    ) -> None:
        """Logs values of the run as a whole, or of a stage.

        Args:
            nimg: of the run now.
            step: the earlier images that the values belong to, if they do.
        """
        now_ms = int(time.time() * 1000)
        self._add(stage, nimg, Metrics(dict(values), nimg if step is None else step, now_ms))

    def picture(self, image: Image, nimg: int) -> None:
        """Logs a grid of samples."""
        buffer = io.BytesIO()
        image.save(buffer, "png")
        self._add("run", nimg, File(f"samples/{nimg:09d}.png", buffer.getvalue()))

    def tag(self, key: str, value: str, nimg: int) -> None:
        """Sets the tag `mimic3d.<key>` of the run."""
        self._add("run", nimg, Tag(f"mimic3d.{key}", value))

    def line(
        self, trainer: Trainer, stage: int, scalars: Mapping[str, float], speed: Mapping[str, float]
    ) -> Divergence | None:
        """Logs one line of a stage at the trainer's `nimg`.

        Args:
            stage: that the steps since the last line belong to.
            scalars: the newest value of each.
            speed: images a second, share of the time spent waiting for data.
        Returns:
            the divergence that this line shows, if there is a new one.
        """
        values = dict(scalars)
        values |= {f"speed/{name}": value for name, value in speed.items()}
        values |= schedule_values(self._config, trainer)
        values |= self._system.read(trainer.device)
        self.metrics(values, trainer.nimg, f"stage{stage}")
        return self._detector.check(trainer.nimg, scalars)

    def diverged(self, divergence: Divergence, nimg: int) -> None:
        """Tags the run with a divergence."""
        self.tag("diverged", divergence.kind, nimg)
        self.tag("diverged.why", divergence.explanation, nimg)

    def flush(self, timeout: float) -> None:
        """Waits until MLflow has taken everything.

        Raises:
            UserError: it has not within `timeout` seconds, or refuses something; says what to do.
        """
        for logger in self._loggers.values():
            logger.flush(timeout)

    @property
    def waiting(self) -> bool:
        """Whether MLflow has yet to take something. What it refused does not wait."""
        return any(logger.waiting for logger in self._loggers.values())

    def flush_and_save(self, timeout: float) -> None:
        """Calls `flush`, then `save`, and ignores errors: for a run that is ending anyway."""
        with contextlib.suppress(UserError):
            self.flush(timeout)
        with contextlib.suppress(UserError):
            self.save()

    def _add(self, stage: str, nimg: int, entry: Entry) -> None:
        if stage not in self._loggers:
            return
        # In one order for both: what MLflow has taken is counted in lines.
        with self._adding:
            self._file.append(LogLine(stage, nimg, entry))
            self._loggers[stage].add(entry)

    def _tag_stage1(self, checkpoint: StoredCheckpoint) -> None:
        """Names, in stage 2, the checkpoint of stage 1 that it began with."""
        if checkpoint.nimg == self._config.stage1_nimg:
            for key, value in ((STAGE1_TAG, checkpoint.uri), (STAGE1_DIGEST_TAG, checkpoint.digest)):
                self._add("stage2", checkpoint.nimg, Tag(key, value))


def schedule_values(config: Config, trainer: Trainer) -> dict[str, float]:
    """The scheduled values of the step that ended at the trainer's `nimg`: rates, decay, blur, pose swaps."""
    schedule, nimg = config.schedule, trainer.nimg - config.schedule.batch
    trained = pretrained(config, nimg)
    values = {
        "schedule/ema_decay": ema_decay(schedule, nimg, trained),
        "schedule/blur_sigma": blur_sigma(schedule, nimg, trained),
        "schedule/pose_swap": pose_swap_probability(schedule, nimg, trained),
    }
    for name in ("generator", "discriminator"):
        optimizer = getattr(trainer, f"{name}_optimizer")
        values[f"schedule/{name}_lr"] = optimizer.param_groups[0]["lr"]
    return values
