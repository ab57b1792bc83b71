"""Values that change during a run, as functions of the images consumed."""

from __future__ import annotations

from mimic3d.config import Config, ScheduleConfig


def stage_at(config: Config, nimg: int) -> int:
    """1 while the 2D branch trains alone, 2 once both branches train together."""
    return 1 if nimg < config.stage1_nimg else 2


def pretrained(config: Config, nimg: int) -> bool:
    """Whether training continues from trained weights: in stage 2, and in a run with `start`.

    The blur, the average's ramp-up and the decrease of pose swaps are for training from scratch, which joint
    training of both branches is as well.
    """
    return bool(config.start) or (stage_at(config, nimg) == 2 and not config.joint)


def rate_factor(config: Config, nimg: int) -> float:
    """The factor of the learning rates: 1, falling linearly to 0 during the cool-down at the end.

    A run that is shorter than its cool-down cools down from its start.
    """
    cooldown = min(config.schedule.cooldown_kimg * 1000, config.total_nimg)
    return 1.0 if cooldown == 0 else min(1.0, (config.total_nimg - nimg) / cooldown)


def ema_decay(schedule: ScheduleConfig, nimg: int, pretrained: bool) -> float:
    """The weight that the running average of G keeps in a step; from scratch its half-life ramps up."""
    half_life = _scaled_with_batch(schedule.ema_half_life_kimg, schedule) * 1000
    if not pretrained and schedule.ema_ramp_up is not None:
        half_life = min(half_life, nimg * schedule.ema_ramp_up)
    return 0.5 ** (schedule.batch / max(half_life, 1e-8))


def blur_sigma(schedule: ScheduleConfig, nimg: int, pretrained: bool) -> float:
    """σ, in pixels, of the blur of what the discriminators see; it falls linearly to 0."""
    if pretrained or schedule.blur_kimg == 0:
        return 0.0
    length = _scaled_with_batch(schedule.blur_kimg, schedule) * 1000
    return schedule.blur_sigma * max(1 - nimg / length, 0.0)


def pose_swap_probability(schedule: ScheduleConfig, nimg: int, pretrained: bool) -> float:
    """The probability of conditioning the generator on a neighbour's camera (EG3D, sec. 4.4).

    It falls linearly from 1 to `pose_swap_final`, and is that from the beginning with trained weights.
    """
    if pretrained or schedule.pose_swap_kimg == 0:
        return schedule.pose_swap_final
    progress = min(nimg / (schedule.pose_swap_kimg * 1000), 1.0)
    return 1 + (schedule.pose_swap_final - 1) * progress


def _scaled_with_batch(kimg: float, schedule: ScheduleConfig) -> float:
    """A length that the config gives for its reference batch, for the batch of the run."""
    return kimg if schedule.reference_batch is None else kimg * schedule.batch / schedule.reference_batch
