"""Baselines: what a recipe is compared with, derived from its config."""

from __future__ import annotations

from dataclasses import replace

from mimic3d.config import Config

EPIGRAF_ANNEAL_KIMG = 10_000.0


def joint(config: Config, recipe: str) -> Config:
    """Both branches trained together from scratch, on the images of both stages (supplement, II.1)."""
    schedule = config.schedule
    both = schedule.stage1_kimg + schedule.stage2_kimg
    return replace(config, recipe=recipe, schedule=replace(schedule, stage1_kimg=0.0, stage2_kimg=both))


def eg3d(config: Config, recipe: str, r1_gamma: float | None = None) -> Config:
    """EG3D alone: no 3D-aware blocks, no 3D branch, no stage 2 (Chan et al., 2022)."""
    regular = config.regularization
    return replace(
        config,
        recipe=recipe,
        model=replace(config.model, architecture="eg3d"),  # It has no stage 2.
        regularization=replace(regular, r1_gamma=regular.r1_gamma if r1_gamma is None else r1_gamma),
    )


def patch_gan(config: Config, recipe: str) -> Config:
    """The 3D branch alone, trained by a patch discriminator as in EpiGRAF (Skorokhodov et al., 2022).

    There is no imitation. The scale of patches is annealed from the whole image to the recipe's, and the
    discriminator is conditioned on scale and position. The generator is not conditioned on its camera: the
    label is always another sample's. Samples are not guided: a ray whose density has vanished has all its
    guided samples at one depth and no gradient, and no 2D branch would restore it.
    """
    schedule = config.schedule
    both = schedule.stage1_kimg + schedule.stage2_kimg
    return replace(
        config,
        recipe=recipe,
        # Without stage 1, coarse and detail planes both begin at random.
        model=replace(config.model, branch_2d=False, detail_init=1.0),
        rendering=replace(config.rendering, guided_samples=0),
        imitation=replace(
            config.imitation,
            lpips_weight=0.0,
            patch_gan_weight=1.0,
            # EpiGRAF's, as a share of its 25 Mimg, so that shorter runs anneal in proportion.
            patch_anneal_kimg=EPIGRAF_ANNEAL_KIMG * both / 25_000,
            patch_label="window",
        ),
        # Its patches are not blurred, as those of joint training with a 2D branch are.
        schedule=replace(schedule, stage1_kimg=0.0, stage2_kimg=both, pose_swap_final=1.0, blur_sigma=0.0),
    )
