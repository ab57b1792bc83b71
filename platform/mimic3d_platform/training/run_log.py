"""What rank 0 logs of a run: losses, schedules, speed, memory and the machine, pictures, what went wrong."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mimic3d.config import Config
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import StoredCheckpoint
from mimic3d_platform.tracking.logger import RunLogger
from mimic3d_platform.training.divergence import Divergence, DivergenceWatch

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from mimic3d.training.trainer import Trainer

PENDING = "pending-log.json"
# MLflow is waited for that long at the end of a run; nothing is lost by giving up, see `RunLogger.pending`.
END_PATIENCE_S = 600.0


class RunLog:
    """The run's and its stages' loggers.

    Args:
        run_ids: of MLflow: "run" and, for each stage that the run has, "stage1", "stage2".
    """

    def __init__(self, run_ids: Mapping[str, str], config: Config) -> None:
        self._config = config
        self._loggers = {key: RunLogger(run_id) for key, run_id in run_ids.items()}
        self._machine = _Machine()
        self._watch = DivergenceWatch()

    def restore(self, pending: Mapping[str, Any]) -> None:
        """Takes over what MLflow had not taken when the checkpoint was made."""
        for key, entries in pending.items():
            if key in self._loggers:
                self._loggers[key].restore(entries)

    def pending(self) -> dict[str, Any]:
        """What MLflow has not taken yet, for the checkpoint."""
        return {key: logger.pending() for key, logger in self._loggers.items()}

    def describe(
        self, device: torch.device, world_size: int, nimg: int, checkpoint: StoredCheckpoint | None
    ) -> None:
        """Says on what the run trains from here, and where it goes on."""
        self.tag("hardware", hardware(device, world_size))
        self.tag("workers", str(world_size))
        if checkpoint is not None:
            self.metrics({"resumed_from": nimg}, nimg)
            self._name_stage1(checkpoint)

    def stored(self, checkpoint: StoredCheckpoint, seconds: float) -> None:
        """Says where the newest checkpoint lies, and how long it took to be stored."""
        self.tag("checkpoint", checkpoint.uri)
        self.metrics({"checkpoint/store_seconds": seconds}, checkpoint.nimg)
        self._name_stage1(checkpoint)

    def _name_stage1(self, checkpoint: StoredCheckpoint) -> None:
        """Stage 2 names the checkpoint of stage 1 that it came from."""
        if checkpoint.nimg == self._config.stage1_nimg:
            self.tag("stage1_checkpoint", checkpoint.uri, stage=2)
            self.tag("stage1_checkpoint.sha256", checkpoint.digest, stage=2)

    def metrics(self, values: Mapping[str, float], nimg: int) -> None:
        """Measured values, of the run as a whole."""
        self._loggers["run"].log_metrics(values, nimg)

    def picture(self, image: Image, nimg: int) -> None:
        """A grid of samples."""
        self._loggers["run"].log_image(image, f"samples/{nimg:09d}.png")

    def tag(self, key: str, value: str, stage: int | None = None) -> None:
        """Tags the run, or one of its stages."""
        logger = self._loggers.get(f"stage{stage}" if stage else "run")
        if logger is not None:
            logger.set_tag(f"mimic3d.{key}", value)

    def line(
        self, trainer: Trainer, stage: int, scalars: Mapping[str, float], speed: Mapping[str, float]
    ) -> Divergence | None:
        """One line of the log, at the trainer's `nimg`.

        Args:
            stage: that the steps since the last line belong to.
            scalars: of the last step.
            speed: what the run measured of itself: images a second, share of waiting for data.
        Returns:
            what this line shows to have gone wrong.
        """
        values = dict(scalars)
        values |= {f"speed/{name}": value for name, value in speed.items()}
        values |= schedule_values(self._config, trainer)
        values |= self._machine.values(trainer.device)
        self._loggers[f"stage{stage}"].log_metrics(values, trainer.nimg)
        return self._watch.look(trainer.nimg, scalars)

    def diverged(self, divergence: Divergence) -> None:
        """Tags the run."""
        self.tag("diverged", divergence.kind)
        self.tag("diverged.why", divergence.explanation)

    def flush(self, timeout: float) -> None:
        """Waits until MLflow has all.

        Raises:
            UserError: it does not answer; says what to do.
        """
        for logger in self._loggers.values():
            logger.flush(timeout)

    @property
    def waiting(self) -> bool:
        """Whether MLflow has yet to take something; what it refused does not wait."""
        return any(self.pending().values())

    def try_to_flush(self, timeout: float) -> None:
        """As `flush`, where another error is the one to be told."""
        with contextlib.suppress(UserError):
            self.flush(timeout)


def schedule_values(config: Config, trainer: Trainer) -> dict[str, float]:
    """What changes during a run by schedule: learning rates, the average's decay, blur, pose swaps."""
    from mimic3d.training.schedules import blur_sigma, ema_decay, pose_swap_probability, pretrained

    # Of the step that ended at the trainer's `nimg`.
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


def hardware(device: torch.device, world_size: int) -> str:
    """What a run trains on, in a few words."""
    if device.type == "cuda":
        import torch

        return f"{world_size} x {torch.cuda.get_device_name(device)}"
    return f"{world_size} x CPU {platform.machine()}"


class _Machine:
    """MLflow's own collectors of system metrics, read at the steps of the log, and this worker's memory."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors: list[Any] = [CPUMonitor(), NetworkMonitor()]
        # Without a GPU, or without NVIDIA's library, it says so by one of these.
        with contextlib.suppress(ImportError, RuntimeError):
            self._monitors.append(GPUMonitor())

    def values(self, device: torch.device) -> dict[str, float]:
        import psutil

        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            # The prefix is MLflow's: it shows these on a page of their own.
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        values["memory/worker_megabytes"] = psutil.Process().memory_info().rss / 1e6
        if device.type == "cuda":
            import torch

            values["memory/gpu_peak_megabytes"] = torch.cuda.max_memory_allocated(device) / 1e6
        return values
