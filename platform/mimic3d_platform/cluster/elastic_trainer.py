"""A Ray Train trainer whose elastic runs use only numbers of workers that can share the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from mimic3d_platform.cluster.ray_internals import ElasticScalingPolicy


class EqualSharesPolicy(ElasticScalingPolicy):
    """Ray's elastic policy, rounded down to a number of workers that can share the batch."""

    def __init__(self, scaling: ScalingConfig, counts: Sequence[int]) -> None:
        super().__init__(scaling)
        self._counts = counts

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        room = super()._count_possible_workers(reserved_resources)
        return max((count for count in self._counts if count <= room), default=0)


class EqualSharesTrainer(TorchTrainer):
    """`TorchTrainer` with `EqualSharesPolicy`, for which Ray has no argument.

    Args:
        counts: the numbers of workers that can share the batch.
        arguments: those of `TorchTrainer`.
    """

    def __init__(self, *arguments: Any, counts: Sequence[int], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._counts = counts

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        scaling = cast(ScalingConfig, self.scaling_config)  # Annotated as Ray Train's older class.
        if scaling.elasticity_enabled:
            arguments["scaling_policy"] = EqualSharesPolicy(scaling, self._counts)
        return super()._initialize_and_run_controller(**arguments)
