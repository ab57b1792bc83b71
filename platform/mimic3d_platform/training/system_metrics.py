"""Readings of the machine that a run logs: MLflow's system metrics, and the worker's memory."""

from __future__ import annotations

import contextlib
import platform
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor


class SystemMetrics:
    """Reads MLflow's monitors at the steps of the log, instead of at times of their own."""

    def __init__(self) -> None:
        # Only rank 0 makes one: the other ranks need not load MLflow.
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), NetworkMonitor()]
        # Raised where there is no GPU, or no library of NVIDIA's.
        with contextlib.suppress(ImportError, RuntimeError):
            self._monitors.append(GPUMonitor())

    def read(self, device: torch.device) -> dict[str, float]:
        """The machine's load and the worker's memory, as MLflow's `system/…` metrics."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        values["memory/worker_megabytes"] = psutil.Process().memory_info().rss / 1e6
        if device.type == "cuda":
            values["memory/gpu_peak_megabytes"] = torch.cuda.max_memory_allocated(device) / 1e6
        return values


def hardware(device: torch.device, world_size: int) -> str:
    """The hardware of a run in a few words, such as `8 x NVIDIA H100`."""
    if device.type == "cuda":
        return f"{world_size} x {torch.cuda.get_device_name(device)}"
    return f"{world_size} x CPU {platform.machine()}"
