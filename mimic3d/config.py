"""The typed, closed and complete configuration of a run: model, losses, optimisers, schedule, evaluation.

Every key has one type and one place; an unknown key, a wrong type or an impossible combination is a
`ConfigError` of one line. A dotted path (`imitation.lpips_weight`) names a key in overrides and sweeps.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class ConfigError(ValueError):
    """A configuration that cannot be: one line that names the key, what is wrong and what would do."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the generator (the paper's at 512² are the defaults) and of both discriminators."""

    image_resolution: int = 512
    neural_rendering_resolution: int = 64
    triplane_resolution: int = 256
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    channel_base: int = 32768
    channel_max: int = 512
    discriminator_channel_base: int = 32768
    discriminator_channel_max: int = 512
    superresolution_input: int = 128
    superresolution_channels: tuple[int, int] = (256, 128)
    architecture: Literal["mimic3d", "eg3d"] = "mimic3d"


@dataclass(frozen=True)
class RenderingConfig:
    """The box that holds the object and the samples along a ray, in world units."""

    near: float = 2.25
    far: float = 3.3
    box_warp: float = 1.0
    coarse_samples: int = 48
    importance_samples: int = 48
    white_background: bool = False


@dataclass(frozen=True)
class CameraConfig:
    """Where pictures of a generator are taken from; what it was trained on are the data set's own labels."""

    radius: float = 2.7
    focal: float = 4.2647
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.2)
    pitch: float = 0.0
    yaw_range: float = 0.4
    """Radians either side of the front; pi goes all the way round."""


@dataclass(frozen=True)
class ImitationConfig:
    """How the 3D branch learns from the 2D branch, patch by patch (stage 2)."""

    patch_resolution: int = 64
    patch_scale: float = 0.125
    lpips_weight: float = 1.0
    patch_gan_weight: float = 0.1


@dataclass(frozen=True)
class RegularizationConfig:
    """R1 on both discriminators and density smoothness, each every few steps (lazy regularisation)."""

    r1_gamma: float = 1.0
    r1_gamma_patch: float = 1.0
    r1_interval: int = 16
    density_weight: float = 0.25
    density_distance_stage1: float = 0.004
    density_distance_stage2: float = 0.002
    density_points: int = 1000
    density_interval: int = 4


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, for the generator and for both discriminators."""

    generator_lr: float = 0.0025
    discriminator_lr: float = 0.002
    beta1: float = 0.0
    beta2: float = 0.99


@dataclass(frozen=True)
class ScheduleConfig:
    """What happens when, in thousands of images (kimg) that the discriminator has seen."""

    batch: int = 32
    stage1_kimg: float = 25000.0
    stage2_kimg: float = 15000.0
    ema_half_life_kimg: float = 10.0
    ema_ramp_up: float | None = 0.05
    blur_sigma: float = 10.0
    blur_kimg: float = 200.0
    pose_swap_kimg: float = 1000.0
    pose_swap_final: float = 0.5


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are fed."""

    uri: str = ""
    cache_bytes: int = 2**30


@dataclass(frozen=True)
class OutputConfig:
    """How often a run writes: checkpoints and sample grids (kimg), log lines (steps), metrics' size."""

    checkpoint_kimg: float = 200.0
    sample_kimg: float = 200.0
    log_steps: int = 50
    metric_images: int = 50000
    metric_identities: int = 50


@dataclass(frozen=True)
class Config:
    """Everything a run used. Written as YAML beside its results, it can be run again."""

    recipe: str = "custom"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    regularization: RegularizationConfig = field(default_factory=RegularizationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        check(self)

    @property
    def stage1_nimg(self) -> int:
        """Images at which stage 1 ends and stage 2 begins."""
        return round(self.schedule.stage1_kimg * 1000)

    @property
    def total_nimg(self) -> int:
        """Images at which the run ends."""
        return self.stage1_nimg + round(self.schedule.stage2_kimg * 1000)


# Keys that have a least value, whatever the others are.
AT_LEAST = {
    "seed": 0,
    "model.z_dim": 1,
    "model.w_dim": 1,
    "model.mapping_layers": 1,
    "rendering.coarse_samples": 4,
    "rendering.importance_samples": 4,
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
    "schedule.batch": 1,
    "schedule.blur_sigma": 0,
    "schedule.blur_kimg": 0,
    "schedule.pose_swap_kimg": 0,
    "data.cache_bytes": 0,
    "output.log_steps": 1,
    "output.metric_images": 2,
    "output.metric_identities": 1,
}
POSITIVE = (
    "rendering.box_warp",
    "camera.radius",
    "camera.focal",
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
        _require(value >= 4 and math.log2(value).is_integer(), f"model.{key}", value, "a power of two from 4")
    factor = model.image_resolution / model.superresolution_input
    _require(
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
        _require(base >= resolution, f"model.{key}_base", base, f"at least {resolution}, one channel there")
        _require(
            getattr(model, f"{key}_max") >= 1, f"model.{key}_max", getattr(model, f"{key}_max"), "at least 1"
        )
    _require(0 <= rendering.near < rendering.far, "rendering.near", rendering.near, "from 0 to rendering.far")
    patch = config.imitation.patch_resolution
    _require(
        patch <= model.image_resolution and patch >= 16 and math.log2(patch).is_integer(),
        "imitation.patch_resolution",
        patch,
        f"a power of two from 16 to model.image_resolution ({model.image_resolution})",
    )
    _require(
        config.imitation.patch_scale * model.image_resolution == patch,
        "imitation.patch_scale",
        config.imitation.patch_scale,
        f"imitation.patch_resolution / model.image_resolution = {patch / model.image_resolution:g}",
    )
    values = flatten(to_dict(config))
    for key, least in AT_LEAST.items():
        _require(values[key] >= least, key, values[key], f"at least {least}")
    for key in POSITIVE:
        _require(values[key] > 0, key, values[key], "more than 0")
    final = schedule.pose_swap_final
    _require(0 <= final <= 1, "schedule.pose_swap_final", final, "from 0 to 1")
    for key in ("optimizer.beta1", "optimizer.beta2"):
        _require(0 <= values[key] < 1, key, values[key], "from 0 to less than 1")
    for width in model.superresolution_channels:
        _require(width >= 1, "model.superresolution_channels", width, "at least 1")
    ramp_up = schedule.ema_ramp_up
    _require(ramp_up is None or ramp_up > 0, "schedule.ema_ramp_up", ramp_up, "more than 0, or none")
    for section, key in (
        ("schedule", "stage1_kimg"),
        ("schedule", "stage2_kimg"),
        ("output", "checkpoint_kimg"),
        ("output", "sample_kimg"),
    ):
        images = getattr(getattr(config, section), key) * 1000
        whole = images >= 0 and abs(images - round(images)) < 1e-6 and round(images) % schedule.batch == 0
        _require(
            whole, f"{section}.{key}", images / 1000, f"a multiple of the batch ({schedule.batch} images)"
        )


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{key} is {value!r}, but must be {expected}")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionaries, lists and scalars, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: Mapping[str, Any]) -> Config:
    """A `Config` from nested plain values; missing keys take their defaults, unknown ones are refused."""
    return _build(Config, values, "")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} to {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def override(config: Config, assignments: Mapping[str, Any]) -> Config:
    """A copy with dotted paths replaced: {"imitation.lpips_weight": "0.5"}; text becomes its key's type."""
    values = to_dict(config)
    known = flatten(values)
    for path, value in assignments.items():
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"unknown config key {path}{hint}")
        *sections, key = path.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[key] = value
    return from_dict(values)


def fingerprint(config: Config) -> str:
    """A SHA-256 of all values: two runs with the same one are the same run."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()


def _build(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'} is {values!r}, but must be a section of keys")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), hints, n=1)
        hint = f"; did you mean {_join(path, near[0])}?" if near else f"; known: {', '.join(hints)}"
        raise ConfigError(f"unknown config key {_join(path, str(unknown[0]))}{hint}")
    return cls(**{key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    if origin is Literal:
        _require(value in arguments, path, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None or value in ("none", "null"):
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path)
    if origin is tuple:
        items = value.strip("()[]").split(",") if isinstance(value, str) else value
        _require(isinstance(items, list | tuple) and len(items) == len(arguments), path, value, _kind(hint))
        return tuple(_convert(kind, item, path) for kind, item in zip(arguments, items, strict=True))
    return _convert_scalar(hint, value, path)


def _convert_scalar(hint: type, value: Any, path: str) -> Any:
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and hint in (int, float):
        try:
            value = hint(value)
        except ValueError:
            _require(False, path, value, _kind(hint))
    if hint is float and type(value) is int:
        value = float(value)
    _require(type(value) is hint, path, value, _kind(hint))
    _require(hint is not float or math.isfinite(value), path, value, "a finite number")
    return value


def _kind(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, f"of type {hint}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
