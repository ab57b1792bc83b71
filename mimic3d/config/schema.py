"""The typed, closed and complete configuration of a run: model, losses, optimisers, schedule, evaluation.

Every key has one type and one place; an unknown key, a wrong type or an impossible combination is a
`ConfigError` of one line. A dotted path (`imitation.lpips_weight`) names a key in overrides and sweeps.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mimic3d.config.checks import check
from mimic3d.config.values import ConfigError, build, flatten

__all__ = ["Config", "ConfigError", "fingerprint", "flatten", "from_dict", "override", "to_dict"]


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
    superresolution_border: Literal["zero", "replicate"] = "zero"
    """What S2D's RGB skip finds beyond the image: zero, as in the paper, puts a grey frame on a white image,
    which the networks must learn to take off again."""
    plane_channels: int = 32
    """Features of a point on each plane; the decoder's hidden layer is twice as wide."""
    architecture: Literal["mimic3d", "eg3d"] = "mimic3d"
    branch_2d: bool = True
    """False leaves the 3D branch alone, without anything to imitate."""
    precision: Literal["fp32", "mixed", "bf16"] = "fp32"
    """Of the discriminators' four finest resolutions and of S2D: mixed is float16 there, as in the paper."""
    aware_s3d: bool = False
    """Makes S3D, too, of 3D-aware blocks: its convolutions read all three planes."""
    detail_init: float = 1.0
    """The scale of S3D's last weights at the start; at 0 stage 2 begins with what the coarse planes show."""


@dataclass(frozen=True)
class RenderingConfig:
    """The box that holds the object and the samples along a ray, in world units."""

    near: float = 2.25
    far: float = 3.3
    box_warp: float = 1.0
    coarse_samples: int = 48
    importance_samples: int = 48
    white_background: bool = False
    guided_samples: int = 0
    """Samples of the 3D branch's rays around the coarse planes' depth; 0 takes those of both passes above."""


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

    patch_resolution: int | None = None
    """Rays along a patch's side; none takes every pixel of the window, fewer than that stride through it."""
    patch_scale: float = 0.125
    """The side of a patch's window as a share of the image's."""
    patch_anneal_kimg: float = 0.0
    """Above 0, windows are drawn from the whole image down to `patch_scale`, larger ones first (EpiGRAF)."""
    patch_label: Literal["none", "window"] = "none"
    """What the patch discriminator is told: nothing, or its window's scale and place."""
    extractors: str = ""
    """What judges likeness: "lpips-vgg16:1,lpips-alex:0.5"; LPIPS on VGG16, or its stand-in, when empty."""
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
class AugmentationConfig:
    """Adaptive augmentation of what the dual discriminator sees, for small data sets (StyleGAN2-ADA)."""

    mode: Literal["none", "ada"] = "none"
    target: float = 0.6
    """The mean sign of the discriminator's logits on reals that its strength is moved to."""
    interval: int = 4
    """Steps between two moves."""
    kimg: float = 500.0
    """Images in which the probability could go from 0 to 1; fewer where trained weights go on."""
    kimg_resumed: float = 100.0


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
    accumulate: int = 1
    """Parts that each worker's share of a batch goes through in turn; the gradients are the same."""
    stage1_kimg: float = 25000.0
    stage2_kimg: float = 15000.0
    ema_half_life_kimg: float = 10.0
    ema_ramp_up: float | None = 0.05
    blur_sigma: float = 10.0
    blur_kimg: float = 200.0
    pose_swap_kimg: float = 1000.0
    pose_swap_final: float = 0.5
    cooldown_kimg: float = 0.0
    """Over the last so many kimg the learning rates fall, linearly, to nothing; 0 keeps them to the end."""


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are fed."""

    uri: str = ""
    cache_bytes: int = 16 * 2**30
    """Of a machine's disk, for all its processes together."""
    camera_balance: float = 0.0
    """How far rare views are made up for, of real images and generated ones alike: 0 not at all, 1 fully."""
    loader_workers: int = 1
    """Processes that fetch and decode for each training worker; 0 leaves that to a thread of the worker's."""
    max_bad_images: int = 0
    """So many images that cannot be decoded are replaced, for each worker; one more ends the run."""
    patience_s: float = 300.0
    """How long a fault of storage that may pass is waited for, in seconds."""


@dataclass(frozen=True)
class OutputConfig:
    """How often a run writes: checkpoints and sample grids (kimg), log lines (steps), metrics' size."""

    checkpoint_kimg: float = 200.0
    sample_kimg: float = 200.0
    log_steps: int = 50
    metric_kimg: float | None = None
    """How often metrics are measured on the way; none only at the ends of stages."""
    metric_images: int = 50000
    metric_identities: int = 50
    keep_checkpoints: int = 2
    """How many of the newest stay; the one that ends stage 1 always does."""
    keep_every_kimg: float | None = None
    """One of every so many stays as well."""
    keep_best: str = ""
    """The name of a metric by which the best one stays as well, such as fid_inception2015/3d."""


@dataclass(frozen=True)
class Config:
    """Everything a run used. Written as YAML beside its results, it can be run again."""

    recipe: str = "custom"
    seed: int = 0
    start: str = ""
    """Folder or URI of a training checkpoint or a generator whose weights the run begins with."""
    model: ModelConfig = field(default_factory=ModelConfig)
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    regularization: RegularizationConfig = field(default_factory=RegularizationConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        check(self)

    @property
    def patch_resolution(self) -> int:
        """Rays along a patch's side."""
        whole = round(self.imitation.patch_scale * self.model.image_resolution)
        return self.imitation.patch_resolution or whole

    @property
    def joint(self) -> bool:
        """Whether both branches train together from scratch (the supplement, II.1)."""
        return self.stage1_nimg == 0 and not self.start

    @property
    def stage1_nimg(self) -> int:
        """Images at which stage 1 ends and stage 2 begins."""
        return round(self.schedule.stage1_kimg * 1000)

    @property
    def total_nimg(self) -> int:
        """Images at which the run ends; EG3D has no stage 2."""
        stage2 = 0 if self.model.architecture == "eg3d" else round(self.schedule.stage2_kimg * 1000)
        return self.stage1_nimg + stage2


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dictionaries, lists and scalars, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: Mapping[str, Any]) -> Config:
    """A `Config` from nested plain values; missing keys take their defaults, unknown ones are refused."""
    return build(Config, values, "")


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
