"""Every recipe builds at its own size, and both of its stages step, reduced in size alone."""

import pytest
import torch
from test_training import MeanAbsolute, labels

from mimic3d.config import Config, ConfigError, from_dict, override, to_dict
from mimic3d.config.recipes import RECIPES, get_recipe
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator
from mimic3d.networks.generator import build_generator
from mimic3d.training.schedules import blur_sigma, ema_decay, pretrained
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)

PIXELS = 32
BATCH = 2


def reduced(config: Config) -> Config:
    """The recipe at 32² with narrow networks and one step a stage; all other settings are its own."""
    model = config.model
    kimg = BATCH / 1000
    stages = config.schedule.stage1_kimg, config.schedule.stage2_kimg
    return override(
        config,
        {
            "model.image_resolution": PIXELS,
            "model.superresolution_input": PIXELS * model.superresolution_input // model.image_resolution,
            "model.superresolution_channels": [8, 8],
            "model.neural_rendering_resolution": min(16, model.neural_rendering_resolution),
            "model.triplane_resolution": 8,
            "model.channel_base": 64,
            "model.channel_max": 8,
            "model.discriminator_channel_base": 128,
            "model.discriminator_channel_max": 8,
            "model.precision": "fp32",
            "model.z_dim": 8,
            "model.w_dim": 8,
            "rendering.coarse_samples": 6,
            "rendering.importance_samples": 6,
            "imitation.patch_scale": max(config.imitation.patch_scale, 8 / PIXELS),
            "regularization.density_points": 16,
            "schedule.batch": BATCH,
            "schedule.stage1_kimg": min(kimg, stages[0]),
            "schedule.stage2_kimg": min(kimg, stages[1]),
            "output.checkpoint_kimg": kimg,
            "output.sample_kimg": kimg,
        },
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_at_its_own_size(name: str) -> None:
    config = get_recipe(name)
    assert config.recipe == name and from_dict(to_dict(config)) == config
    model = config.model
    widths = (model.discriminator_channel_base, model.discriminator_channel_max)
    with torch.device("meta"):
        generator = build_generator(config)
        dual = DualDiscriminator(model.image_resolution, *widths)
        PatchDiscriminator(config.patch_resolution, *widths)
    assert generator.backbone.synthesis.resolutions[-1] == model.triplane_resolution
    assert dual.resolutions[0] == model.image_resolution


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_docstring_has_command_hardware_and_time(name: str) -> None:
    said = RECIPES[name].__doc__ or ""
    assert f"mimic3d train {name} " in said or (name == "cars-demo" and "make demo" in said)
    assert "GPU" in said or "CPU cores" in said or "V100" in said
    if not name.startswith(("cars-demo", "cars64", "cars-small", "cars-continued")):
        assert "days" in said and ("FID" in said or name.startswith("cars128"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_steps_through_both_stages(name: str) -> None:
    trainer = Trainer(reduced(get_recipe(name)), MeanAbsolute())
    stages = []
    while not trainer.finished:
        images = torch.randint(0, 256, (BATCH, 3, PIXELS, PIXELS), dtype=torch.uint8)
        stages.append(trainer.stage)
        log = trainer.step(images, labels()[:BATCH], labels())
        assert all(value.isfinite() for value in log.values())
    baselines = {"eg3d": [1], "joint": [2], "gan": [2]}
    assert stages == baselines.get(name.split("-")[-1], [1, 2])
    assert all(parameter.isfinite().all() for parameter in trainer.generator.parameters())


def test_the_papers_recipes_have_the_papers_numbers() -> None:
    # image, neural rendering, S2D's input and channels; patch scale and weight; R1; near, far, box; samples
    expected = {
        "ffhq512": (512, 64, 128, (256, 128), 1 / 8, 0.1, 1, 1, 2.25, 3.3, 1, 48, 48, "none"),
        "ffhq256": (256, 64, 128, (128, 64), 1 / 4, 0.2, 1, 1, 2.25, 3.3, 1, 48, 48, "none"),
        "cats512": (512, 64, 128, (256, 128), 1 / 8, 0.1, 5, 5, 2.25, 3.3, 1, 48, 48, "ada"),
        "cats256": (256, 64, 128, (128, 64), 1 / 4, 0.2, 5, 5, 2.25, 3.3, 1, 48, 48, "ada"),
        "cars128": (128, 64, 64, (128, 64), 1 / 2, 0.2, 1, 1, 0.1, 2.6, 1.6, 64, 64, "none"),
    }
    for name, numbers in expected.items():
        config = get_recipe(name)
        model, imitation, regular = config.model, config.imitation, config.regularization
        rendering, schedule = config.rendering, config.schedule
        assert numbers == (
            *(model.image_resolution, model.neural_rendering_resolution, model.superresolution_input),
            *(model.superresolution_channels, imitation.patch_scale, imitation.patch_gan_weight),
            *(regular.r1_gamma, regular.r1_gamma_patch, rendering.near, rendering.far, rendering.box_warp),
            *(rendering.coarse_samples, rendering.importance_samples, config.augmentation.mode),
        ), name
        stages = {"cats256": (1600, 10_000), "cats512": (4000, 6200)}.get(name, (25000, 15000))
        assert (schedule.stage1_kimg, schedule.stage2_kimg, schedule.batch) == (*stages, 32)
        assert config.patch_resolution == 64 and model.precision == "mixed"
        assert rendering.white_background == (name == "cars128")


def test_nothing_of_the_papers_recipes_deviates_from_the_paper() -> None:
    papers = [name for name in RECIPES if name.startswith(("ffhq", "cats", "cars128"))]
    for config in (get_recipe(name) for name in papers if not name.endswith("patch-gan")):
        schedule = config.schedule
        assert not config.model.allow_tf32 and not config.imitation.share_fakes, config.recipe
        assert not config.optimizer.keep_moments, config.recipe
        assert (schedule.reference_batch, schedule.ema_half_life_kimg, schedule.blur_kimg) == (32, 10, 200)
        larger = override(config, {"schedule.batch": 64}).schedule
        assert ema_decay(larger, 10**7, False) == 0.5 ** (64 / 20_000)
        assert [blur_sigma(larger, nimg, False) for nimg in (0, 200_000, 400_000)] == [10, 5, 0]


def test_cats_are_fine_tuned_from_stage_1_of_faces() -> None:
    for size in (256, 512):
        config = get_recipe(f"cats{size}")
        with pytest.raises(ConfigError, match=f"checkpoint that ends stage 1 of ffhq{size}"):
            config.require_start()
        started = override(config, {"start": "s3://somewhere"})
        started.require_start()
        assert pretrained(started, 0) and blur_sigma(started.schedule, 0, pretrained(started, 0)) == 0
        override(config, {"start_recipe": ""}).require_start()
        scratch = get_recipe(f"cats{size}-scratch")
        scratch.require_start()
        assert not pretrained(scratch, 0) and scratch.total_nimg == 40_000_000


def test_a_recipe_is_deterministic() -> None:
    assert all(get_recipe(name) == get_recipe(name) for name in RECIPES)
    assert len({str(to_dict(get_recipe(name))) for name in RECIPES}) == len(RECIPES)


def test_an_unknown_recipe_is_one_line_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown recipe cars-dmeo; did you mean cars-demo") as caught:
        get_recipe("cars-dmeo")
    assert all(name in str(caught.value) for name in RECIPES) and "\n" not in str(caught.value)
