"""Pinned loss curves: every scalar that tiny trainings log, step by step, in float64 on one CPU thread.

`test_loss_curves.py` compares a training of today with the numbers in `loss_curves.json`. A refactoring must
leave them alone; a change of the method rewrites them, and the diff shows by how much:

    python tests/mimic3d/loss_curves.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import (
    AugmentationConfig,
    Config,
    ImitationConfig,
    ModelConfig,
    OutputConfig,
    RegularizationConfig,
    RenderingConfig,
    ScheduleConfig,
)
from mimic3d.config.baselines import eg3d, joint, patch_gan
from mimic3d.training.trainer import Trainer

CURVES = Path(__file__).parent / "loss_curves.json"
BATCH = 4

TWO_STAGES = Config(
    model=ModelConfig(32, 8, 8, 8, 8, 2, 64, 8, 128, 8, 16, (8, 8)),
    rendering=RenderingConfig(1.0, 2.4, 1.2, 4, 4, True),
    imitation=ImitationConfig(16, 0.5),
    regularization=RegularizationConfig(density_points=16, r1_interval=4, density_interval=2),
    augmentation=AugmentationConfig(mode="ada", kimg=0.2, kimg_resumed=0.2),
    schedule=ScheduleConfig(
        batch=BATCH,
        stage1_kimg=0.08,
        stage2_kimg=0.08,
        reference_batch=None,
        ema_half_life_kimg=0.02,
        blur_sigma=1.5,
        blur_kimg=0.06,
        pose_swap_kimg=0.06,
        cooldown_kimg=0.04,
    ),
    output=OutputConfig(checkpoint_kimg=0.04, sample_kimg=0.04),
)
# 40 steps of the method, both stages with adaptive augmentation; 12 of each baseline.
_SHORT = replace(
    TWO_STAGES,
    augmentation=AugmentationConfig(),
    schedule=replace(TWO_STAGES.schedule, stage1_kimg=0.024, stage2_kimg=0.024, cooldown_kimg=0.0),
)
CASES = {
    "two-stages": TWO_STAGES,
    "joint": joint(_SHORT, "joint"),
    "eg3d": replace(
        eg3d(_SHORT, "eg3d"), schedule=replace(_SHORT.schedule, stage1_kimg=0.048, stage2_kimg=0.0)
    ),
    "patch-gan": patch_gan(_SHORT, "patch-gan"),
}


class MeanAbsolute(nn.Module):
    """A distance of images that needs no weights."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3))


def loss_curve(config: Config) -> dict[str, dict[str, float]]:
    """The scalars of each step, by images consumed; `ema` is a sum over the averaged weights."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    # In float32 the rounding of another processor grows to a tenth of a gradient within ten steps.
    torch.set_default_dtype(torch.float64)
    try:
        trainer = Trainer(config, MeanAbsolute())
        yaw = torch.linspace(0, 6, 12)
        cameras = look_at(on_sphere(yaw, yaw / 10, 1.7), focal=1.1).double()
        curve = {}
        while not trainer.finished:
            source = torch.Generator().manual_seed(trainer.nimg)
            images = torch.randint(0, 256, (BATCH, 3, 32, 32), generator=source).to(torch.uint8)
            picks = torch.randint(0, len(cameras), (BATCH,), generator=source)
            scalars = trainer.step(images, cameras[picks], cameras)
            curve[str(trainer.nimg)] = {name: float(value) for name, value in sorted(scalars.items())}
        average = sum(parameter.double().abs().sum() for parameter in trainer.ema.parameters())
        curve["ema"] = {"sum": float(average)}
        return curve
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


def pinned() -> dict[str, dict[str, dict[str, float]]]:
    """The numbers in the repository, by case."""
    return json.loads(CURVES.read_text(encoding="utf-8"))


def main() -> None:
    curves = {name: loss_curve(config) for name, config in CASES.items()}
    lines = []
    for name, curve in curves.items():
        rows = ",\n".join(f"  {json.dumps(at)}: {json.dumps(row)}" for at, row in curve.items())
        lines.append(f" {json.dumps(name)}: {{\n{rows}\n }}")
    CURVES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"wrote {CURVES}")


if __name__ == "__main__":
    main()
