"""Named recipes: the settings of an experiment, each derived from another by what differs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import replace

from mimic3d.config import (
    CameraConfig,
    Config,
    ConfigError,
    ImitationConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RegularizationConfig,
    RenderingConfig,
    ScheduleConfig,
)


def cars128() -> Config:
    """Cars at 128², with the paper's settings for ShapeNet-Cars.

    mimic3d train cars128 --data s3://…; the paper trained on 40 million images, 32 at a time on eight GPUs.
    """
    return Config(
        recipe="cars128",
        model=ModelConfig(
            image_resolution=128,
            neural_rendering_resolution=64,
            triplane_resolution=256,
            superresolution_input=64,
            superresolution_channels=(128, 64),
        ),
        rendering=RenderingConfig(
            near=0.1,
            far=2.6,
            box_warp=1.6,
            coarse_samples=64,
            importance_samples=64,
            white_background=True,
        ),
        camera=CameraConfig(radius=1.7, focal=1.0254, pivot=(0.0, 0.0, 0.0), pitch=0.45, yaw_range=math.pi),
        imitation=ImitationConfig(patch_scale=0.5, patch_gan_weight=0.2),
    )


def cars64() -> Config:
    """Cars at 64²: cars128 at half the size and a tenth of its images, for one GPU.

    mimic3d train cars64 --data s3://… on cars that `mimic3d data render --resolution 64` made.
    """
    base = cars128()
    return replace(
        base,
        recipe="cars64",
        model=replace(
            base.model,
            image_resolution=64,
            neural_rendering_resolution=32,
            triplane_resolution=64,
            channel_base=16384,
            channel_max=256,
            discriminator_channel_base=16384,
            discriminator_channel_max=256,
            superresolution_input=32,
        ),
        rendering=replace(base.rendering, near=0.9, far=2.5, coarse_samples=32, importance_samples=32),
        camera=replace(base.camera, focal=1.4),
        schedule=ScheduleConfig(stage1_kimg=2400, stage2_kimg=1600, blur_sigma=1.25, pose_swap_kimg=400),
        output=OutputConfig(checkpoint_kimg=40, sample_kimg=40, metric_images=10000),
    )


def cars_demo() -> Config:
    """Cars at 32²: the same method as small as it goes, for two CPU cores and a few minutes.

    `make demo`. Networks as small as these learn at higher rates than the paper's, and what counts is the
    number of steps, not the size of the batch.
    """
    base = cars64()
    return replace(
        base,
        recipe="cars-demo",
        model=replace(
            base.model,
            image_resolution=32,
            neural_rendering_resolution=16,
            triplane_resolution=16,
            z_dim=64,
            w_dim=64,
            channel_base=1024,
            channel_max=64,
            discriminator_channel_base=1024,
            discriminator_channel_max=64,
            superresolution_input=16,
            superresolution_channels=(32, 32),
        ),
        rendering=replace(
            base.rendering, near=1.05, far=2.35, box_warp=1.2, coarse_samples=8, importance_samples=8
        ),
        regularization=RegularizationConfig(r1_gamma=0.2, r1_gamma_patch=0.2, density_points=250),
        optimizer=OptimizerConfig(generator_lr=0.004, discriminator_lr=0.0035),
        schedule=ScheduleConfig(
            batch=8,
            stage1_kimg=8.8,
            stage2_kimg=3.2,
            ema_half_life_kimg=0.3,
            blur_sigma=0,
            pose_swap_kimg=0,
        ),
        output=OutputConfig(
            checkpoint_kimg=0.8, sample_kimg=1.6, log_steps=25, metric_images=512, metric_identities=16
        ),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "cars-demo": cars_demo,
    "cars64": cars64,
    "cars128": cars128,
}


def get_recipe(name: str) -> Config:
    """The config of a named recipe.

    Raises:
        ConfigError: no recipe bears the name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown recipe {name}; {hint}known: {', '.join(RECIPES)}")
    return RECIPES[name]()
