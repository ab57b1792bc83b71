"""Which values of a configuration can work together."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from mimic3d.config.values import flatten, require

if TYPE_CHECKING:
    from mimic3d.config import Config

# Keys that have a least value, whatever the others are.
AT_LEAST = {
    "seed": 0,
    "model.z_dim": 1,
    "model.w_dim": 1,
    "model.plane_channels": 3,
    "model.mapping_layers": 1,
    "model.detail_init": 0,
    "rendering.coarse_samples": 4,
    "rendering.importance_samples": 4,
    "imitation.patch_anneal_kimg": 0,
    "imitation.lpips_weight": 0,
    "imitation.patch_gan_weight": 0,
    "regularization.r1_gamma": 0,
    "regularization.r1_gamma_patch": 0,
    "regularization.r1_interval": 1,
    "regularization.density_weight": 0,
    "regularization.density_distance_stage1": 0,
    "regularization.density_distance_stage2": 0,
    "regularization.density_points": 1,
    "regularization.density_interval": 1,
    "augmentation.interval": 1,
    "schedule.batch": 1,
    "schedule.accumulate": 1,
    "schedule.blur_sigma": 0,
    "schedule.blur_kimg": 0,
    "schedule.pose_swap_kimg": 0,
    "schedule.cooldown_kimg": 0,
    "data.cache_bytes": 0,
    "data.loader_workers": 0,
    "data.max_bad_images": 0,
    "data.patience_s": 0,
    "output.log_steps": 1,
    "output.metric_images": 2,
    "output.metric_identities": 1,
    "output.keep_checkpoints": 1,
}
POSITIVE = (
    "rendering.box_warp",
    "camera.radius",
    "camera.focal",
    "augmentation.kimg",
    "augmentation.kimg_resumed",
    "optimizer.generator_lr",
    "optimizer.discriminator_lr",
    "schedule.ema_half_life_kimg",
    "output.checkpoint_kimg",
    "output.sample_kimg",
)


def check(config: Config) -> None:
    """Raises `ConfigError` for values that cannot work together."""
    model, rendering, schedule = config.model, config.rendering, config.schedule
    for key in (
        "image_resolution",
        "neural_rendering_resolution",
        "triplane_resolution",
        "superresolution_input",
    ):
        value = getattr(model, key)
        require(value >= 4 and math.log2(value).is_integer(), f"model.{key}", value, "a power of two from 4")
    factor = model.image_resolution / model.superresolution_input
    require(
        factor in (2, 4),
        "model.superresolution_input",
        model.superresolution_input,
        f"a half or a quarter of model.image_resolution ({model.image_resolution})",
    )
    finest = {
        "channel": model.triplane_resolution,
        "discriminator_channel": model.image_resolution,
    }
    for key, resolution in finest.items():
        base = getattr(model, f"{key}_base")
        require(base >= resolution, f"model.{key}_base", base, f"at least {resolution}, one channel there")
        require(
            getattr(model, f"{key}_max") >= 1, f"model.{key}_max", getattr(model, f"{key}_max"), "at least 1"
        )
    require(0 <= rendering.near < rendering.far, "rendering.near", rendering.near, "from 0 to rendering.far")
    guided = rendering.guided_samples
    require(guided == 0 or guided >= 4, "rendering.guided_samples", guided, "0, or at least 4")
    _check_patches(config)
    _check_branches(config)
    if config.imitation.extractors:
        parse_extractors(config.imitation.extractors)
    values = flatten(dataclasses.asdict(config))
    for key, least in AT_LEAST.items():
        require(values[key] >= least, key, values[key], f"at least {least}")
    for key in POSITIVE:
        require(values[key] > 0, key, values[key], "more than 0")
    require(
        schedule.batch % schedule.accumulate == 0,
        "schedule.accumulate",
        schedule.accumulate,
        f"a divisor of the batch ({schedule.batch} images)",
    )
    balance = config.data.camera_balance
    require(0 <= balance <= 1, "data.camera_balance", balance, "from 0 to 1")
    target = config.augmentation.target
    require(-1 < target < 1, "augmentation.target", target, "more than -1 and less than 1")
    final = schedule.pose_swap_final
    require(0 <= final <= 1, "schedule.pose_swap_final", final, "from 0 to 1")
    for key in ("optimizer.beta1", "optimizer.beta2"):
        require(0 <= values[key] < 1, key, values[key], "from 0 to less than 1")
    for width in model.superresolution_channels:
        require(width >= 1, "model.superresolution_channels", width, "at least 1")
    ramp_up = schedule.ema_ramp_up
    require(ramp_up is None or ramp_up > 0, "schedule.ema_ramp_up", ramp_up, "more than 0, or none")
    every = config.output.keep_every_kimg
    apart = round((every or 0) * 1000) % max(round(config.output.checkpoint_kimg * 1000), 1)
    require(
        every is None or (every > 0 and apart == 0),
        "output.keep_every_kimg",
        every,
        f"a multiple of output.checkpoint_kimg ({config.output.checkpoint_kimg}), or none",
    )
    often = config.output.metric_kimg
    require(often is None or often > 0, "output.metric_kimg", often, "more than 0, or none")
    for section, key in (
        ("schedule", "stage1_kimg"),
        ("schedule", "stage2_kimg"),
        ("output", "checkpoint_kimg"),
        ("output", "sample_kimg"),
        ("output", "metric_kimg"),
    ):
        images = (getattr(getattr(config, section), key) or 0) * 1000
        whole = images >= 0 and abs(images - round(images)) < 1e-6 and round(images) % schedule.batch == 0
        require(
            whole, f"{section}.{key}", images / 1000, f"a multiple of the batch ({schedule.batch} images)"
        )


def parse_extractors(text: str) -> list[tuple[str, float]]:
    """The names and weights of "lpips-vgg16:1,lpips-alex:0.5"; a name without a weight has 1."""
    parsed = []
    for item in text.split(","):
        name, _, number = item.partition(":")
        try:
            weight = float(number or 1)
        except ValueError:
            weight = math.nan
        good = bool(name.strip()) and math.isfinite(weight) and weight > 0
        require(good, "imitation.extractors", text, "name:weight,name:weight, weights above 0")
        parsed.append((name.strip(), weight))
    return parsed


def _check_branches(config: Config) -> None:
    model, schedule = config.model, config.schedule
    if model.architecture == "eg3d":
        require(schedule.stage1_kimg > 0, "schedule.stage1_kimg", 0, "more than 0: EG3D has no stage 2")
        require(model.branch_2d, "model.branch_2d", False, "true: EG3D has no other branch")
    if not model.branch_2d:
        mode = config.augmentation.mode
        require(mode == "none", "augmentation.mode", mode, "none: it is of what the 2D branch's judge sees")
        why = "0: without the 2D branch there is"
        require(schedule.stage1_kimg == 0, "schedule.stage1_kimg", schedule.stage1_kimg, f"{why} no stage 1")
        guided = config.rendering.guided_samples
        require(guided == 0, "rendering.guided_samples", guided, f"{why} no guide")
        weight = config.imitation.lpips_weight
        require(weight == 0, "imitation.lpips_weight", weight, f"{why} nothing to imitate")


SMALLEST_PATCH = 8


def _check_patches(config: Config) -> None:
    imitation, resolution = config.imitation, config.model.image_resolution
    scale, patch = imitation.patch_scale, imitation.patch_resolution
    window = scale * resolution
    if patch is None:
        sides = [2**k for k in range(int(math.log2(SMALLEST_PATCH)), int(math.log2(resolution)) + 1)]
        expected = ", ".join(f"{side / resolution:g}" for side in sides)
        require(
            window in sides,
            "imitation.patch_scale",
            scale,
            f"one of {expected}: patches of {SMALLEST_PATCH}² pixels and more, a power of two; "
            "any other scale needs imitation.patch_resolution",
        )
        return
    require(0 < scale <= 1, "imitation.patch_scale", scale, "more than 0 and at most 1")
    require(
        SMALLEST_PATCH <= patch <= window and math.log2(patch).is_integer(),
        "imitation.patch_resolution",
        patch,
        f"none or a power of two from {SMALLEST_PATCH} to imitation.patch_scale × model.image_resolution "
        f"({window:g} pixels)",
    )
