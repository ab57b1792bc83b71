"""A training's dry run: its checks, its workers, an estimate of memory and time. Nothing is started.

The estimate rests on one step of each stage with one image, run here on a CPU: the bytes that the networks
and the backward pass hold, the time that the step takes here, and its floating-point operations, from which
the time on a GPU follows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mimic3d.config import Config, config_to_yaml, override
from mimic3d.export.orbits import front
from mimic3d.losses.imitation import imitation_distance
from mimic3d.training.trainer import Trainer
from mimic3d_platform.cluster.resources import WorkerPlan
from mimic3d_platform.console import Console
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.models.registry import check_registration
from mimic3d_platform.training.train import check_training

# Floating-point operations a second that an H100 has done in this code without CUDA graphs, in float32
# (`make gpu-battery`): small networks leave most of a GPU idle, and other GPUs are slower.
GPU_FLOPS = 3e12
# Beside tensors: libraries, a CUDA context, the loader's buffers.
BASE_BYTES = 1_500_000_000


@dataclass(frozen=True)
class StageCost:
    """A step of a stage, per image.

    Attributes:
        seconds: on one thread of this machine.
        operations: floating-point, of forward and backward passes.
        activation_bytes: the most that is held for backward passes.
    """

    stage: int
    seconds: float
    operations: float
    activation_bytes: int


@dataclass(frozen=True)
class TrainingCost:
    """An estimate for a run.

    Attributes:
        network_bytes: weights, gradients, moments and averages, in each worker.
    """

    network_bytes: int
    stages: tuple[StageCost, ...]


def measure_cost(config: Config, perceptual: nn.Module) -> TrainingCost:
    """Measures a step of each stage with one image, on one thread.

    Args:
        perceptual: as `Trainer` takes it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        single = override(config, {"schedule.batch": 1, "schedule.accumulate": 1, "model.precision": "fp32"})
        trainer = Trainer(single, perceptual, "cpu")
        ends = {1: single.stage1_nimg, 2: single.total_nimg}
        begins = {1: 0, 2: single.stage1_nimg}
        has = [stage for stage in ends if ends[stage] > begins[stage]]
        stages = tuple(_stage_cost(trainer, stage, begins[stage]) for stage in has)
        networks = (trainer.generator, trainer.dual, trainer.patch)
        numbers = sum(parameter.numel() for network in networks for parameter in network.parameters())
        averages = sum(parameter.numel() for parameter in trainer.ema.parameters())
        fixed = sum(parameter.numel() for parameter in perceptual.parameters())
        # Weights, gradients and Adam's two moments of what is trained.
        return TrainingCost(4 * (4 * numbers + averages + fixed), stages)
    finally:
        torch.set_num_threads(threads)


def _stage_cost(trainer: Trainer, stage: int, begin: int) -> StageCost:
    regular = trainer.config.regularization
    # The first step of a stage has all regularisation, the next has none; the latter also warms up.
    trainer.nimg = begin + 1
    _step(trainer)
    counted: dict[bool, tuple[float, float]] = {}
    peak = 0
    for regularised in (False, True):
        trainer.nimg = _multiple(begin, regular.r1_interval, regularised)
        started = time.perf_counter()
        _step(trainer)
        seconds = time.perf_counter() - started
        held = HeldBytes()
        with Operations() as operations, held.counted():
            _step(trainer)
        counted[regularised] = seconds, float(operations.total)
        peak = max(peak, held.most)
    share = 1 / min(regular.r1_interval, regular.density_interval)
    both = zip(counted[False], counted[True], strict=True)
    mean = [plain + share * max(whole - plain, 0.0) for plain, whole in both]
    return StageCost(stage, mean[0], mean[1], peak)


def _multiple(begin: int, interval: int, regularised: bool) -> int:
    """The first image from `begin` on at which a step of one image is, or is not, regularised."""
    first = -(-begin // interval) * interval
    return first if regularised else first + 1


def _step(trainer: Trainer) -> None:
    side = trainer.config.model.image_resolution
    camera = front(trainer.config.camera).reshape(1, 25)
    trainer.step(torch.zeros(1, 3, side, side, dtype=torch.uint8), camera, camera)


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and convolutions during its block."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


class HeldBytes:
    """Counts the bytes that backward passes hold; a storage that several tensors share counts once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._holders: dict[int, int] = {}

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Counts what autograd saves during the block."""
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor
        ):
            yield

    def add(self, storage: torch.UntypedStorage) -> None:
        """Counts a saved tensor's storage."""
        key = storage.data_ptr()
        if not self._holders.get(key):
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
        self._holders[key] = self._holders.get(key, 0) + 1

    def remove(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage out again, once no saved tensor uses it."""
        key = storage.data_ptr()
        self._holders[key] -= 1
        if not self._holders[key]:
            self.now -= storage.nbytes()


class _Saved:
    """A tensor that a backward pass needs; autograd drops it afterwards."""

    def __init__(self, tensor: torch.Tensor, held: HeldBytes) -> None:
        self.tensor, self._held = tensor, held
        held.add(tensor.untyped_storage())

    def __del__(self) -> None:
        self._held.remove(self.tensor.untyped_storage())


@dataclass(frozen=True)
class Estimate:
    """Memory, time and speed of a run on its workers.

    Attributes:
        worker_bytes: memory of a worker, of the GPU where it has one.
        stage_seconds: of each stage's steps; measurements and sample grids come on top.
        images_per_second: of each stage, on all workers.
    """

    worker_bytes: int
    stage_seconds: dict[int, float]
    images_per_second: dict[int, float]


def estimate(config: Config, cost: TrainingCost, plan: WorkerPlan) -> Estimate:
    """The estimate for a run on the largest number of workers of its plan."""
    images = {1: config.stage1_nimg, 2: config.total_nimg - config.stage1_nimg}
    speeds, seconds, held = {}, {}, 0
    for stage in cost.stages:
        each = stage.operations / GPU_FLOPS if plan.gpu else stage.seconds
        speeds[stage.stage] = plan.most / each
        seconds[stage.stage] = images[stage.stage] / speeds[stage.stage]
        held = max(held, stage.activation_bytes)
    local = max(plan.batch // plan.least, 1)
    return Estimate(BASE_BYTES + cost.network_bytes + local * held, seconds, speeds)


def print_dry_run(
    config: Config,
    name: str,
    workers: int | tuple[int, int] | None,
    console: Console,
    model: str | None = None,
    alias: str | None = None,
) -> None:
    """Checks a training as `train` does, and prints its config, workers, memory and time.

    Raises:
        UserError: the training would be refused.
    """
    check_registration(model, alias)
    checked = check_training(config, name, workers)
    config, plan = checked.config, checked.plan
    console.say(config_to_yaml(config).rstrip())
    if checked.advice is not None:
        console.say(checked.advice)
    extractors = config.imitation.extractors or feature_weights.best_available("perceptual")
    with console.working("measuring a step of each stage with one image"):
        cost = measure_cost(config, imitation_distance(extractors, feature_weights.resolve))
    found = estimate(config, cost, plan)
    each = f"a {'GPU' if plan.gpu else 'CPU'}"
    count = f"{plan.least} to {plan.most}" if plan.elastic else str(plan.most)
    header = ["workers", "memory of each", *(f"stage {stage.stage}" for stage in cost.stages), "steps in all"]
    times = [
        f"{found.images_per_second[stage.stage]:.3g} images/s, {_duration(found.stage_seconds[stage.stage])}"
        for stage in cost.stages
    ]
    total = _duration(sum(found.stage_seconds.values()))
    console.table(header, [[f"{count}, {each} each", f"{found.worker_bytes / 1e9:.1f} GB", *times, total]])
    basis = (
        f"from {GPU_FLOPS / 1e12:g} Tflop/s, an H100's in small networks without CUDA graphs"
        if plan.gpu
        else "from one step on a CPU of this machine"
    )
    console.say(
        f"rough: {basis}; measurements, sample grids and waiting for other workers come on top. "
        "Nothing was started"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
