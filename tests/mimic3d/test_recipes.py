"""Every recipe builds at its own size, and both of its stages step, reduced in size alone."""

import pytest
import torch
from test_training import MeanAbsolute, labels

from mimic3d.config import Config, ConfigError, from_dict, override, to_dict
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator
from mimic3d.networks.generator import build_generator
from mimic3d.recipes import RECIPES, get_recipe
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)

PIXELS = 32
BATCH = 2


def reduced(config: Config) -> Config:
    """The recipe at 32² with narrow networks and one step a stage; all other settings are its own."""
    model = config.model
    kimg = BATCH / 1000
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
            "model.z_dim": 8,
            "model.w_dim": 8,
            "rendering.coarse_samples": 6,
            "rendering.importance_samples": 6,
            "imitation.patch_scale": max(config.imitation.patch_scale, 8 / PIXELS),
            "regularization.density_points": 16,
            "schedule.batch": BATCH,
            "schedule.stage1_kimg": kimg,
            "schedule.stage2_kimg": kimg,
            "output.checkpoint_kimg": kimg,
            "output.sample_kimg": kimg,
        },
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_at_its_own_size(name: str) -> None:
    config = get_recipe(name)
    assert config.recipe == name and from_dict(to_dict(config)) == config
    assert RECIPES[name].__doc__, "a recipe says what it is and how to run it"
    assert config.stage1_nimg < config.total_nimg, "it ends with stage 2"
    model = config.model
    widths = (model.discriminator_channel_base, model.discriminator_channel_max)
    with torch.device("meta"):
        generator = build_generator(config)
        dual = DualDiscriminator(model.image_resolution, *widths)
        PatchDiscriminator(config.patch_resolution, *widths)
    assert generator.backbone.synthesis.resolutions[-1] == model.triplane_resolution
    assert dual.resolutions[0] == model.image_resolution


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_steps_through_both_stages(name: str) -> None:
    trainer = Trainer(reduced(get_recipe(name)), MeanAbsolute())
    stages = []
    while not trainer.finished:
        images = torch.randint(0, 256, (BATCH, 3, PIXELS, PIXELS), dtype=torch.uint8)
        stages.append(trainer.stage)
        log = trainer.step(images, labels()[:BATCH], labels())
        assert all(value.isfinite() for value in log.values())
    assert stages == [1, 2]
    assert all(parameter.isfinite().all() for parameter in trainer.generator.parameters())


def test_a_recipe_is_the_same_whenever_it_is_asked_for() -> None:
    assert all(get_recipe(name) == get_recipe(name) for name in RECIPES)
    assert len({str(to_dict(get_recipe(name))) for name in RECIPES}) == len(RECIPES)


def test_an_unknown_recipe_is_one_line_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown recipe cars-dmeo; did you mean cars-demo") as caught:
        get_recipe("cars-dmeo")
    assert all(name in str(caught.value) for name in RECIPES) and "\n" not in str(caught.value)
