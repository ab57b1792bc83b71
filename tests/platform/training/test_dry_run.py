"""What a training would take is measured, not guessed."""

import torch
from torch import nn

from mimic3d.config import override
from mimic3d.config.recipes import get_recipe
from mimic3d_platform.cluster.resources import WorkerPlan
from mimic3d_platform.training import dry_run
from mimic3d_platform.training.dry_run import (
    HeldBytes,
    Operations,
    StageCost,
    TrainingCost,
    estimate,
    measure_cost,
)


class Difference(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3))


def test_operations_and_what_backward_holds_are_counted_to_the_number() -> None:
    layer = nn.Linear(64, 32)
    x = torch.randn(16, 64, requires_grad=True)
    held = HeldBytes()
    with Operations() as operations, held.counted():
        layer(x).sum().backward()
    # Forward, the gradient of the weight and that of the input: 2·16·64·32 each.
    assert operations.total == 3 * 2 * 16 * 64 * 32
    assert held.most == 4 * (16 * 64 + 64 * 32)  # The input and the weight, which gradients need.


def test_a_step_of_each_stage_is_measured() -> None:
    config = override(
        get_recipe("cars-demo"), {"model.triplane_resolution": 8, "imitation.patch_scale": 0.5, "seed": 3}
    )
    cost = measure_cost(config, Difference())
    first, second = cost.stages
    assert (first.stage, second.stage) == (1, 2)
    assert second.operations > first.operations > 1e8
    assert second.activation_bytes > first.activation_bytes > 1e6 and first.seconds > 0
    only = measure_cost(override(config, {"schedule.stage2_kimg": 0.0}), Difference())
    assert [stage.stage for stage in only.stages] == [1] and only.network_bytes == cost.network_bytes


def test_time_is_of_all_workers_and_memory_of_the_fewest() -> None:
    config = override(get_recipe("cars-demo"), {"schedule.stage1_kimg": 1.6, "schedule.stage2_kimg": 3.2})
    cost = TrainingCost(10_000, (StageCost(1, 0.5, 1e9, 100), StageCost(2, 1.0, 3e9, 300)))
    on_cpus = estimate(config, cost, WorkerPlan((1, 2), False, 1, 4))
    assert on_cpus.images_per_second == {1: 4, 2: 2} and on_cpus.stage_seconds == {1: 400, 2: 1600}
    assert on_cpus.worker_bytes == dry_run.BASE_BYTES + 10_000 + 4 * 300
    on_gpus = estimate(config, cost, WorkerPlan((2,), True, 4, 4))
    assert on_gpus.images_per_second == {1: 2 * dry_run.GPU_FLOPS / 1e9, 2: 2 * dry_run.GPU_FLOPS / 3e9}
    assert on_gpus.worker_bytes == dry_run.BASE_BYTES + 10_000 + 2 * 300
