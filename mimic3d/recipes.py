"""Named recipes: the settings of an experiment, derived from one another."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable

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


def cars_demo() -> Config:
    """x"""
    return Config(
        recipe="cars-demo",
        model=ModelConfig(
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
        rendering=RenderingConfig(1.05, 2.35, 1.2, 8, 8, True),
        camera=CameraConfig(1.7, 1.4, (0.0, 0.0, 0.0), 0.45, math.pi),
        imitation=ImitationConfig(16, 0.5, 1.0, 0.2),
        regularization=RegularizationConfig(r1_gamma=0.3, r1_gamma_patch=0.3, density_points=250),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(
            batch=8,
            stage1_kimg=9.6,
            stage2_kimg=4.8,
            ema_half_life_kimg=0.3,
            blur_sigma=0,
            blur_kimg=0,
            pose_swap_kimg=0,
            pose_swap_final=0.5,
        ),
        output=OutputConfig(
            checkpoint_kimg=0.8, sample_kimg=1.6, log_steps=25, metric_images=512, metric_identities=16
        ),
    )


RECIPES: dict[str, Callable[[], Config]] = {"cars-demo": cars_demo}


def get_recipe(name: str) -> Config:
    """The config of a named recipe."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown recipe {name}; {hint}known: {', '.join(RECIPES)}")
    return RECIPES[name]()
