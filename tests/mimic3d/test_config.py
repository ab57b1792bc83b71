"""The configuration is closed: what cannot be is one line that says what, where and what would do."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from mimic3d.config import (
    Config,
    ConfigError,
    ScheduleConfig,
    config_from_yaml,
    config_to_yaml,
    fingerprint,
    flatten,
    from_dict,
    override,
    to_dict,
)
from mimic3d.config.glossary import glossary


def refusal(key: str, value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        override(Config(), {key: value})
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("schedule.batch", "8", 8),
        ("imitation.lpips_weight", "0.5", 0.5),
        ("imitation.lpips_weight", 2, 2.0),
        ("rendering.white_background", "TRUE", True),
        ("model.superresolution_channels", "(64, 32)", (64, 32)),
        ("camera.pivot", "0,0.5,1", (0.0, 0.5, 1.0)),
        ("schedule.ema_ramp_up", "none", None),
        ("schedule.ema_ramp_up", "0.1", 0.1),
        ("data.uri", "s3://bucket/cars", "s3://bucket/cars"),
        ("model.architecture", "eg3d", "eg3d"),
    ],
)
def test_a_dotted_path_overrides_one_key(key: str, text: object, expected: object) -> None:
    section, name = key.split(".")
    changed = override(Config(), {key: text})
    value = getattr(getattr(changed, section), name)
    assert value == expected and type(value) is type(expected)
    restored = dataclasses.replace(changed, **{section: getattr(Config(), section)})
    assert restored == Config(), "nothing else has changed"


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("imitation.lpips_wait", "1", "did you mean imitation.lpips_weight?"),
        ("nonsense", "1", "known keys: "),
        ("schedule.batch", "eight", "must be a whole number"),
        ("schedule.batch", 2.5, "must be a whole number"),
        ("schedule.batch", True, "must be a whole number"),
        ("seed", None, "must be a whole number"),
        ("imitation.lpips_weight", "nan", "must be a finite number"),
        ("imitation.lpips_weight", "inf", "must be a finite number"),
        ("rendering.white_background", "perhaps", "must be true or false"),
        ("rendering.white_background", 1, "must be true or false"),
        ("camera.pivot", "1,2", "camera.pivot is '1,2'"),
        ("camera.pivot", 3, "camera.pivot is 3"),
        ("data.uri", 3, "must be text"),
        ("model.architecture", "nerf", "one of mimic3d, eg3d"),
        ("model", 3, "unknown config key model"),
    ],
)
def test_an_unknown_key_or_wrong_type_is_one_line(key: str, value: object, named: str) -> None:
    message = refusal(key, value)
    assert named in message and key in message and "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.image_resolution", 300),
        ("model.triplane_resolution", 2),
        ("model.superresolution_input", 512),
        ("model.z_dim", 0),
        ("model.mapping_layers", 0),
        ("model.channel_base", 128),
        ("model.channel_max", 0),
        ("model.discriminator_channel_base", 256),
        ("model.superresolution_channels", "0,64"),
        ("rendering.near", 4.0),
        ("rendering.near", -1.0),
        ("rendering.box_warp", 0.0),
        ("rendering.coarse_samples", 3),
        ("camera.focal", -1.0),
        ("imitation.patch_resolution", 48),
        ("imitation.patch_resolution", 4),
        ("imitation.patch_resolution", 128),
        ("imitation.patch_scale", 0.3),
        ("imitation.patch_scale", 2),
        ("imitation.patch_scale", 1 / 128),
        ("imitation.lpips_weight", -0.1),
        ("imitation.patch_gan_weight", -1),
        ("regularization.r1_gamma", -1),
        ("regularization.r1_interval", 0),
        ("regularization.density_points", 0),
        ("optimizer.generator_lr", -0.001),
        ("optimizer.discriminator_lr", 0),
        ("optimizer.beta1", 1.0),
        ("optimizer.beta2", -0.1),
        ("schedule.batch", 0),
        ("schedule.accumulate", 0),
        ("schedule.accumulate", 3),
        ("data.camera_balance", 1.5),
        ("schedule.stage1_kimg", 0.001),
        ("schedule.stage2_kimg", -3.2),
        ("schedule.ema_half_life_kimg", 0),
        ("schedule.ema_ramp_up", 0),
        ("schedule.pose_swap_final", 1.5),
        ("output.checkpoint_kimg", 0),
        ("output.sample_kimg", 0.033),
        ("output.log_steps", 0),
        ("output.metric_images", 1),
    ],
)
def test_an_impossible_value_is_one_line_that_names_its_key(key: str, value: object) -> None:
    message = refusal(key, value)
    assert message.startswith(key) and "must be" in message and "\n" not in message


def test_values_that_belong_together_are_changed_together() -> None:
    sizes = {
        "model.image_resolution": "256",
        "imitation.patch_scale": "0.3",
        "imitation.patch_resolution": "64",
        "schedule.batch": "8",
        "schedule.stage1_kimg": "0.024",
    }
    config = override(Config(), sizes)
    assert (config.stage1_nimg, config.total_nimg) == (24, 24 + 15_000_000)
    with pytest.raises(ConfigError, match=r"imitation\.patch_scale"):
        override(Config(), {"imitation.patch_scale": "0.3"})


@pytest.mark.parametrize(("scale", "patch"), [("0.125", 8), ("0.25", 16), ("0.5", 32), ("1", 64)])
def test_the_scale_of_patches_is_one_key(scale: str, patch: int) -> None:
    sizes = {"model.image_resolution": 64, "model.superresolution_input": 32}
    assert override(Config(), sizes | {"imitation.patch_scale": scale}).patch_resolution == patch


def test_yaml_holds_the_whole_config() -> None:
    config = override(Config(), {"camera.pivot": "0,0,1", "schedule.ema_ramp_up": "none", "data.uri": "x: ü"})
    text = config_to_yaml(config)
    assert config_from_yaml(text, "here") == config
    assert from_dict(to_dict(config)) == config
    assert config_from_yaml("schedule: {batch: 16}", "here").schedule.batch == 16
    assert config_from_yaml("", "here") == Config()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "is not YAML"),
        ("[1, 2]", "must be a section of keys"),
        ("model: 3", "model is 3, but must be a section"),
        ("schedule: {bach: 3}", "did you mean schedule.batch?"),
        ("3: 4", "unknown config key 3"),
        ("!!python/object/apply:os.system [exit]", "is not YAML"),
    ],
)
def test_broken_yaml_is_one_line_that_names_its_source(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^run/config\.yaml") as caught:
        config_from_yaml(text, "run/config.yaml")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_the_fingerprint_is_of_the_values_alone() -> None:
    root = Path(__file__).parents[2]
    code = "from mimic3d.config import Config, fingerprint; print(fingerprint(Config()))"
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint(Config()) == fingerprint(from_dict(to_dict(Config())))
    marks = {fingerprint(override(Config(), {key: value})) for key, value in [("seed", 1), ("data.uri", "a")]}
    assert len(marks | {fingerprint(Config())}) == 3


def test_every_key_has_a_dotted_path_of_its_own() -> None:
    flat = flatten(to_dict(Config()))
    assert all(value == flat[key] for key, value in flatten(to_dict(override(Config(), flat))).items())


def test_every_key_is_in_the_glossary_with_its_meaning() -> None:
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == glossary(), "run: python -m mimic3d.config.glossary > docs/config.md"
    assert all(f"| `{key}` |" in page for key in flatten(to_dict(Config())))


def test_a_section_refuses_a_value_without_the_rest_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"^schedule\.batch is 0, but must be at least 1$"):
        ScheduleConfig(batch=0)
