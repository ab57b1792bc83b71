"""Everything that changes during a run, as a function of images consumed."""

from __future__ import annotations

from mimic3d.config import Config, ScheduleConfig


def stage_at(config: Config, nimg: int) -> int:
    """1 while the 2D branch trains alone, 2 once both train together."""
    return 1 if nimg < config.stage1_nimg else 2


def ema_decay(schedule: ScheduleConfig, nimg: int, stage: int) -> float:
    """The weight that the running average keeps after a batch; it ramps up in stage 1 only."""
    half_life = schedule.ema_half_life_kimg * 1000
    if stage == 1 and schedule.ema_ramp_up is not None:
        half_life = min(half_life, nimg * schedule.ema_ramp_up)
    return 0.5 ** (schedule.batch / max(half_life, 1e-8))


def blur_sigma(schedule: ScheduleConfig, nimg: int, stage: int) -> float:
    """Standard deviation, in pixels, of the blur on the dual discriminator's images; fades out in stage 1."""
    if stage != 1 or schedule.blur_kimg == 0:
        return 0.0
    return schedule.blur_sigma * max(1 - nimg / (schedule.blur_kimg * 1000), 0.0)


def pose_swap_probability(schedule: ScheduleConfig, nimg: int, stage: int) -> float:
    """How often the generator is conditioned on a neighbour's camera (EG3D, sec. 4.4), from 1 downwards."""
    if stage != 1 or schedule.pose_swap_kimg == 0:
        return schedule.pose_swap_final
    progress = min(nimg / (schedule.pose_swap_kimg * 1000), 1.0)
    return 1 + (schedule.pose_swap_final - 1) * progress
