"""Everything that changes during a run, as a function of images consumed."""

from __future__ import annotations

from mimic3d.config import Config, ScheduleConfig


def stage_at(config: Config, nimg: int) -> int:
    """1 while the 2D branch trains alone, 2 once both train together."""
    return 1 if nimg < config.stage1_nimg else 2


def goes_on(config: Config, nimg: int) -> bool:
    """Whether training goes on from trained weights: in stage 2, and in a run that has a start.

    It then begins without blur, ramp-up of the average and full pose swapping; from scratch, jointly trained
    branches included, it begins with them.
    """
    return bool(config.start) or (stage_at(config, nimg) == 2 and not config.joint)


def rate_factor(config: Config, nimg: int) -> float:
    """What the learning rates are multiplied by: 1, falling to 0 during the cool-down at the end.

    A run that is shorter than its cool-down cools down all along.
    """
    cooldown = min(config.schedule.cooldown_kimg * 1000, config.total_nimg)
    return 1.0 if cooldown == 0 else min(1.0, (config.total_nimg - nimg) / cooldown)


def ema_decay(schedule: ScheduleConfig, nimg: int, goes_on: bool) -> float:
    """The weight that the running average keeps after a batch; from scratch its half-life ramps up."""
    half_life = schedule.ema_half_life_kimg * 1000
    if not goes_on and schedule.ema_ramp_up is not None:
        half_life = min(half_life, nimg * schedule.ema_ramp_up)
    return 0.5 ** (schedule.batch / max(half_life, 1e-8))


def blur_sigma(schedule: ScheduleConfig, nimg: int, goes_on: bool) -> float:
    """Standard deviation, in pixels, of the blur on the dual discriminator's images; it fades out."""
    if goes_on or schedule.blur_kimg == 0:
        return 0.0
    return schedule.blur_sigma * max(1 - nimg / (schedule.blur_kimg * 1000), 0.0)


def pose_swap_probability(schedule: ScheduleConfig, nimg: int, goes_on: bool) -> float:
    """How often the generator is conditioned on a neighbour's camera (EG3D, sec. 4.4), from 1 downwards."""
    if goes_on or schedule.pose_swap_kimg == 0:
        return schedule.pose_swap_final
    progress = min(nimg / (schedule.pose_swap_kimg * 1000), 1.0)
    return 1 + (schedule.pose_swap_final - 1) * progress
