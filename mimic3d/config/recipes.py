"""Named recipes: the configs of experiments, each derived from another by its differences."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import replace

from mimic3d.config import (
    AugmentationConfig,
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
from mimic3d.config.baselines import eg3d, joint, patch_gan

# Times in the docstrings: EG3D takes 24 s per 1000 images at 512² on eight V100 GPUs, stage 2 half as much
# again: the two stages take about 7 and 6 days. No times are published for smaller images, which take less.


def ffhq512() -> Config:
    """Faces at 512², as published: FID 5.37 of the 3D branch, 50 000 images against all reals.

    mimic3d train ffhq512 --data s3://…, with FFHQ as EG3D aligns it, mirrored images and camera labels. The
    paper trains on 25 + 15 million images, batch 32, on eight GPUs; about 13 days on V100s.
    """
    return Config(recipe="ffhq512", model=ModelConfig(precision="mixed"))


def ffhq256() -> Config:
    """Faces at 256², as published: FID 5.14 of the 3D branch.

    mimic3d train ffhq256 --data s3://…; data and number of images as `ffhq512`; eight GPUs, 31 GB on each; at
    most 13 days on V100s.
    """
    base = ffhq512()
    return replace(
        base,
        recipe="ffhq256",
        model=replace(base.model, image_resolution=256, superresolution_channels=(128, 64)),
        imitation=replace(base.imitation, patch_scale=0.25, patch_gan_weight=0.2),
    )


def _of_cats(base: Config, recipe: str) -> Config:
    """AFHQ's cats: stronger R1 and adaptive augmentation, since images are few; another camera pivot."""
    return replace(
        base,
        recipe=recipe,
        camera=replace(base.camera, pivot=(0.0, 0.0, -0.06)),
        regularization=replace(base.regularization, r1_gamma=5.0, r1_gamma_patch=5.0),
        augmentation=AugmentationConfig(mode="ada"),
    )


def cats512_scratch() -> Config:
    """AFHQ's cats at 512² with the lengths of faces, without a start; no FID of this setting is published.

    mimic3d train cats512-scratch --data s3://…, AFHQv2's cats with mirror images and camera labels; images,
    GPUs and days as `ffhq512`.
    """
    return _of_cats(ffhq512(), "cats512-scratch")


def cats256_scratch() -> Config:
    """AFHQ's cats at 256² with the lengths of faces, without a start; nobody publishes an FID of that.

    mimic3d train cats256-scratch --data s3://…; data as `cats512`, sizes, eight GPUs and days as `ffhq256`.
    """
    return _of_cats(ffhq256(), "cats256-scratch")


def cats512() -> Config:
    """AFHQ's cats at 512², as published: FID 4.29 of the 3D branch.

    mimic3d train cats512 --data s3://… --set start=s3://…: AFHQv2's cats with mirror images and camera
    labels; the checkpoint that ends stage 1 of `ffhq512`, which is fine-tuned on 4 million images. The
    released network has seen 6.2 million in stage 2; 32 at a time on eight GPUs, about 4 days of V100s.
    """
    base = cats512_scratch()
    schedule = replace(base.schedule, stage1_kimg=4000.0, stage2_kimg=6200.0)
    return replace(base, recipe="cats512", start_recipe="ffhq512", schedule=schedule)


def cats256() -> Config:
    """AFHQ's cats at 256², as published: FID 4.14 of the 3D branch.

    mimic3d train cats256 --data s3://… --set start=s3://…; data as `cats512`, and the checkpoint that ends
    stage 1 of `ffhq256`, which is fine-tuned on 1.6 million images. The released network has seen 10 million
    in stage 2; on eight GPUs, at most 5 days of V100s.
    """
    base = cats256_scratch()
    schedule = replace(base.schedule, stage1_kimg=1600.0, stage2_kimg=10_000.0)
    return replace(base, recipe="cats256", start_recipe="ffhq256", schedule=schedule)


def cars128() -> Config:
    """Cars at 128², with the paper's settings for ShapeNet-Cars, of which it publishes no FID.

    mimic3d train cars128 --data s3://…; the paper trains on 40 million images, batch 32, on eight GPUs; at
    most 13 days on V100s, as `ffhq512`.
    """
    return Config(
        recipe="cars128",
        model=ModelConfig(
            image_resolution=128,
            neural_rendering_resolution=64,
            triplane_resolution=256,
            superresolution_input=64,
            superresolution_channels=(128, 64),
            precision="mixed",
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

    mimic3d train cars64 --data s3://…, with cars from `mimic3d data render --resolution 64`.
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
            precision="fp32",
        ),
        rendering=replace(base.rendering, near=0.9, far=2.5, coarse_samples=32, importance_samples=32),
        camera=replace(base.camera, focal=1.4),
        schedule=ScheduleConfig(stage1_kimg=2400, stage2_kimg=1600, blur_sigma=1.25, pose_swap_kimg=400),
        output=OutputConfig(checkpoint_kimg=40, sample_kimg=40, metric_images=10000),
    )


def cars_small() -> Config:
    """Cars at 64² with networks of 2 million parameters, for about an hour of one large GPU.

    mimic3d train cars-small --data s3://… on one GPU, or `make pretrained` without services. The data are
    those of `mimic3d data render` with --resolution 64 --focal 1.4 --colourings 32 --views 32: 13 312 images
    of 13 models.

    It differs from the paper in: planes of half the image's resolution, detail planes of the image's, as in
    the paper at 512²; one render for both discriminators; a discriminator that learns at half the rate, since
    at the paper's it told all fakes apart within 30 steps; a blur that ends early and is as wide for these
    images as the paper's; a shorter annealing of the label swap; and a cool-down of the learning rates.

    Seen after 41 + 37 kimg, eight minutes of an H100 without CUDA graphs (170 images/s in stage 1, 140 in
    stage 2): fd_mobilenetv2 of 2000 images 376 (2D) and 430 (3D), cars with windows and wheels.
    """
    base = cars64()
    return replace(
        base,
        recipe="cars-small",
        model=replace(
            base.model,
            triplane_resolution=32,
            z_dim=128,
            w_dim=128,
            channel_base=4096,
            channel_max=128,
            discriminator_channel_base=4096,
            discriminator_channel_max=128,
            superresolution_channels=(64, 64),
            superresolution_border="replicate",
            detail_init=0.0,
        ),
        rendering=replace(
            base.rendering, near=1.1, far=2.3, box_warp=1.1, coarse_samples=24, importance_samples=24
        ),
        imitation=replace(base.imitation, share_fakes=True),
        optimizer=OptimizerConfig(discriminator_lr=0.001),
        schedule=ScheduleConfig(
            batch=32,
            stage1_kimg=240,
            stage2_kimg=240,
            blur_sigma=4.0,
            blur_kimg=9.6,
            pose_swap_kimg=100,
            cooldown_kimg=80,
        ),
        output=OutputConfig(checkpoint_kimg=40, sample_kimg=40, metric_images=10000),
    )


def cars_continued() -> Config:
    """cars-small, continued from `builtin:cars-stage1` for minutes of two CPU cores.

    `make demo`, or mimic3d train cars-continued --data s3://…. It adds 20 steps to a stage 1 of 41 kimg,
    then trains stage 2; `mimic3d demo` sets its length. It differs from cars-small in: batches of 4, since
    the number of steps counts; half the samples of rays; lower learning rates, which fall from the first step
    on; a short moving average; no blur and no annealing, which are behind.
    """
    base = cars_small()
    return replace(
        base,
        recipe="cars-continued",
        start="builtin:cars-stage1",
        rendering=replace(base.rendering, coarse_samples=12, importance_samples=12),
        optimizer=OptimizerConfig(generator_lr=0.001, discriminator_lr=0.0005),
        schedule=replace(
            base.schedule,
            batch=4,
            stage1_kimg=0.08,
            stage2_kimg=0.32,
            reference_batch=None,
            ema_half_life_kimg=0.1,
            blur_sigma=0,
            pose_swap_kimg=0,
            cooldown_kimg=0.4,
        ),
        output=OutputConfig(0.08, 0.16, log_steps=10, metric_images=96, metric_identities=8),
    )


def cars_demo() -> Config:
    """Cars at 32²: the method at its smallest, from scratch, for two CPU cores and a few minutes.

    `mimic3d demo --from-scratch`, or mimic3d train cars-demo --data s3://…. It differs from the paper in:
    higher learning rates, which small networks need; cars that fill more of the image and of the box, so
    that fewer pixels and cells are empty; guided samples, since rays have few; detail planes that begin
    as zeros, so that stage 2 begins with what stage 1 has learnt; most images in stage 2, in which both
    branches learn; small batches, since the result of a few minutes depends on the number of steps; a
    cool-down over all of stage 2, since at high rates the last steps decide how the result looks; and one
    render for both discriminators, which saves time in each step of stage 2.
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
            plane_channels=16,
            z_dim=32,
            w_dim=64,
            channel_base=1024,
            channel_max=64,
            discriminator_channel_base=1024,
            discriminator_channel_max=64,
            superresolution_input=16,
            superresolution_channels=(32, 32),
            superresolution_border="replicate",
            detail_init=0.0,
        ),
        rendering=replace(
            base.rendering,
            near=1.15,
            far=2.25,
            box_warp=1.0,
            coarse_samples=8,
            importance_samples=8,
            guided_samples=8,
        ),
        camera=replace(base.camera, focal=1.6),
        imitation=replace(base.imitation, patch_gan_weight=0.5, share_fakes=True),
        regularization=RegularizationConfig(r1_gamma=0.1, r1_gamma_patch=0.1, density_points=250),
        optimizer=OptimizerConfig(generator_lr=0.005, discriminator_lr=0.005),
        schedule=ScheduleConfig(
            batch=4,
            stage1_kimg=0.8,
            stage2_kimg=3.2,
            reference_batch=None,
            ema_half_life_kimg=0.3,
            blur_sigma=0,
            pose_swap_kimg=0,
            cooldown_kimg=3.2,
        ),
        output=OutputConfig(
            checkpoint_kimg=0.4, sample_kimg=0.8, log_steps=50, metric_images=512, metric_identities=16
        ),
    )


def ffhq256_joint() -> Config:
    """Faces at 256², both branches from scratch: FID 5.03 in the supplement (II.1).

    mimic3d train ffhq256-joint --data s3://…; data, number of images and GPUs as `ffhq256`. All steps take as
    long as stage 2's: at most 17 days on V100s.
    """
    return joint(ffhq256(), "ffhq256-joint")


def cars_demo_joint() -> Config:
    """cars-demo with both branches from scratch, on two CPU cores: mimic3d train cars-demo-joint --data s3://…"""
    return joint(cars_demo(), "cars-demo-joint")


def ffhq512_eg3d() -> Config:
    """EG3D on faces at 512²: FID 4.70 published, about 7 days on eight V100 GPUs.

    mimic3d train ffhq512-eg3d --data s3://…; the baseline that stage 1 is compared with.
    """
    return eg3d(ffhq512(), "ffhq512-eg3d")


def cars128_eg3d() -> Config:
    """EG3D on cars at 128², with its R1 weight of 0.3.

    mimic3d train cars128-eg3d --data s3://…; 25 million images, batch 32, on eight GPUs: at most 7 days on
    V100s.
    """
    return eg3d(cars128(), "cars128-eg3d", r1_gamma=0.3)


def cars_demo_eg3d() -> Config:
    """cars-demo by EG3D alone, on two CPU cores: mimic3d train cars-demo-eg3d --data s3://…

    It has no stage 2: stage 1 has the number of images of the demo's both stages.
    """
    demo = cars_demo()
    base = eg3d(demo, "cars-demo-eg3d")
    return replace(base, schedule=replace(base.schedule, stage1_kimg=demo.total_nimg / 1000))


def ffhq512_patch_gan() -> Config:
    """EpiGRAF's training on faces at 512²; EpiGRAF itself publishes FID 9.92.

    mimic3d train ffhq512-patch-gan --data s3://…; patches of 64² rays, of scales from 1 to an eighth; 40
    million images on eight GPUs: at most 17 days on V100s.
    """
    return patch_gan(ffhq512(), "ffhq512-patch-gan")


def cars_demo_patch_gan() -> Config:
    """cars-demo by a patch discriminator alone, on two CPU cores.

    mimic3d train cars-demo-patch-gan --data s3://…. Without imitation, the demo's learning rates and weak R1
    lead to empty images within a few hundred steps; rates are lower and R1 stronger here.
    """
    base = patch_gan(cars_demo(), "cars-demo-patch-gan")
    return replace(
        base,
        regularization=replace(base.regularization, r1_gamma_patch=1.0),
        optimizer=replace(base.optimizer, generator_lr=0.002, discriminator_lr=0.002),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "cars-demo": cars_demo,
    "cars-demo-joint": cars_demo_joint,
    "cars-demo-eg3d": cars_demo_eg3d,
    "cars-demo-patch-gan": cars_demo_patch_gan,
    "cars-continued": cars_continued,
    "cars64": cars64,
    "cars-small": cars_small,
    "cars128": cars128,
    "cars128-eg3d": cars128_eg3d,
    "ffhq256": ffhq256,
    "ffhq256-joint": ffhq256_joint,
    "ffhq512": ffhq512,
    "ffhq512-eg3d": ffhq512_eg3d,
    "ffhq512-patch-gan": ffhq512_patch_gan,
    "cats256": cats256,
    "cats256-scratch": cats256_scratch,
    "cats512": cats512,
    "cats512-scratch": cats512_scratch,
}


def get_recipe(name: str) -> Config:
    """The config of a named recipe.

    Raises:
        ConfigError: there is no recipe of that name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"unknown recipe {name}; {hint}known: {', '.join(RECIPES)}")
    return RECIPES[name]()
