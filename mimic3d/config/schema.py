"""The typed, closed and complete configuration of a run: model, losses, optimisers, schedule, evaluation.

Every key has one type, bounds and one place; an unknown key, a wrong type or an impossible combination is a
`ConfigError` of one line. A dotted path (`imitation.lpips_weight`) names a key in overrides and sweeps.
`mimic3d.config.glossary` prints all keys with the docstrings below.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from mimic3d.config.bounds import (
    Count,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Resolution,
    WholeBatches,
    at_least,
    check_bounds,
    field_types,
    inside,
    metadata_of,
    more_than,
    zero_or_at_least,
)
from mimic3d.config.values import ConfigError, build, flatten, require

SMALLEST_PATCH = 8


@dataclass(frozen=True)
class Section:
    """A group of keys. Its fields are checked against the bounds in their types when it is made."""

    NAME: ClassVar[str]

    def __post_init__(self) -> None:
        check_bounds(self, self.NAME)


@dataclass(frozen=True)
class ModelConfig(Section):
    """Sizes of the generator and of both discriminators; the defaults are the paper's at 512²."""

    NAME: ClassVar[str] = "model"

    image_resolution: Resolution = 512
    """Pixels along a side of the images."""
    neural_rendering_resolution: Resolution = 64
    """Pixels along a side of the 2D branch's volume rendering, before its super-resolution S2D."""
    triplane_resolution: Resolution = 256
    """Cells along a side of the coarse tri-plane; the detail tri-plane has twice as many."""
    z_dim: Count = 512
    """Size of the latent z."""
    w_dim: Count = 512
    """Size of the intermediate latent w."""
    mapping_layers: Count = 2
    """Layers of the mapping network."""
    channel_base: int = 32768
    """The backbone has channel_base / r channels at resolution r, at most `channel_max`."""
    channel_max: Count = 512
    """The most channels of a backbone layer."""
    discriminator_channel_base: int = 32768
    """As `channel_base`, of both discriminators."""
    discriminator_channel_max: Count = 512
    """As `channel_max`, of both discriminators."""
    superresolution_input: Resolution = 128
    """Resolution to which S2D resizes the 2D branch's rendering first."""
    superresolution_channels: tuple[Count, Count] = (256, 128)
    """Channels of S2D's two blocks."""
    superresolution_border: Literal["zero", "replicate"] = "zero"
    """Padding of S2D's RGB skip: zero, as in the paper, darkens the rim of images with a white background."""
    plane_channels: Annotated[int, at_least(3)] = 32
    """Features of a point on each plane; the decoder's hidden layer is twice as wide."""
    architecture: Literal["mimic3d", "eg3d"] = "mimic3d"
    """mimic3d, or eg3d: without 3D-aware blocks, 3D branch and stage 2."""
    branch_2d: bool = True
    """Whether there is a 2D branch; without one, the 3D branch has nothing to imitate."""
    precision: Literal["fp32", "mixed", "bf16"] = "fp32"
    """Of S2D and the discriminators' four finest resolutions; mixed is float16 on GPUs, as in the paper."""
    aware_s3d: bool = False
    """Whether the blocks of S3D are 3D-aware, too: their convolutions read all three planes."""
    detail_init: NonNegative = 1.0
    """Initial scale of S3D's last weights; at 0 the 3D branch begins as the coarse planes' rendering."""
    allow_tf32: bool = False
    """Allows TF32 (a mantissa of 10 bits) for float32 products and convolutions on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = self.image_resolution / self.superresolution_input
        require(
            factor in (2, 4),
            "model.superresolution_input",
            self.superresolution_input,
            f"a half or a quarter of model.image_resolution ({self.image_resolution})",
        )
        for key, resolution in (
            ("channel_base", self.triplane_resolution),
            ("discriminator_channel_base", self.image_resolution),
        ):
            base = getattr(self, key)
            expected = f"at least {resolution}, which gives the finest layer one channel"
            require(base >= resolution, f"model.{key}", base, expected)


@dataclass(frozen=True)
class RenderingConfig(Section):
    """The box that holds the object and the samples along a ray, in world units."""

    NAME: ClassVar[str] = "rendering"

    near: NonNegative = 2.25
    """Depth at which rays begin."""
    far: float = 3.3
    """Depth at which rays end."""
    box_warp: Positive = 1.0
    """Side of the box about the origin that the tri-planes cover."""
    coarse_samples: Annotated[int, at_least(4)] = 48
    """Stratified samples of a ray's first pass."""
    importance_samples: Annotated[int, at_least(4)] = 48
    """Samples of a ray's second pass, placed where the first found density."""
    white_background: bool = False
    """Whether rays that pass through everything are white instead of black."""
    guided_samples: Annotated[int, zero_or_at_least(4)] = 0
    """Samples of the 3D branch's rays, near the depth of the coarse planes; 0 takes the two passes above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.near < self.far, "rendering.near", self.near, f"less than rendering.far ({self.far})")


@dataclass(frozen=True)
class CameraConfig(Section):
    """Where a generator is rendered from; training takes its cameras from the data set's labels."""

    NAME: ClassVar[str] = "camera"

    radius: Positive = 2.7
    """Distance from the pivot, in world units."""
    focal: Positive = 4.2647
    """Focal length in units of the image's side."""
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.2)
    """The point that cameras look at, in world units."""
    pitch: float = 0.0
    """Elevation above the pivot, in radians."""
    yaw_range: float = 0.4
    """Radians either side of the front; pi goes all the way round."""


@dataclass(frozen=True)
class ImitationConfig(Section):
    """How the 3D branch learns from the 2D branch, patch by patch (stage 2)."""

    NAME: ClassVar[str] = "imitation"

    patch_resolution: int | None = None
    """Rays along a side of a patch; none renders every pixel of the patch's square, fewer skip pixels."""
    patch_scale: Annotated[float, more_than(0)] = 0.125
    """Side of a patch's square as a share of the image's side."""
    patch_anneal_kimg: NonNegative = 0.0
    """Kimg over which the scale of patches is annealed from 1 to `patch_scale` (EpiGRAF); 0 fixes it."""
    patch_label: Literal["none", "window"] = "none"
    """What the patch discriminator is conditioned on: nothing, or the patch's scale and position."""
    extractors: str = ""
    """Networks that measure the imitation, with weights: "lpips-vgg16:1,lpips-alex:0.5"; empty is LPIPS on
    VGG16, or its stand-in."""
    lpips_weight: NonNegative = 1.0
    """Weight of the perceptual distance between the branches."""
    patch_gan_weight: NonNegative = 0.1
    """Weight of the patch discriminator's adversarial loss."""
    share_fakes: bool = False
    """Renders one batch of generated scenes for both discriminators; the paper samples one for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extractors:
            parse_extractors(self.extractors)
        require(
            0 < self.patch_scale <= 1, "imitation.patch_scale", self.patch_scale, "more than 0, at most 1"
        )


def parse_extractors(text: str) -> list[tuple[str, float]]:
    """The names and weights of "lpips-vgg16:1,lpips-alex:0.5"; a name without a weight has weight 1.

    Raises:
        ConfigError: a name is missing, or a weight is not a positive number.
    """
    parsed = []
    for item in text.split(","):
        name, _, number = item.partition(":")
        try:
            weight = float(number or 1)
        except ValueError:
            weight = math.nan
        valid = bool(name.strip()) and math.isfinite(weight) and weight > 0
        require(valid, "imitation.extractors", text, "name:weight,name:weight, weights above 0")
        parsed.append((name.strip(), weight))
    return parsed


@dataclass(frozen=True)
class RegularizationConfig(Section):
    """R1 on both discriminators and density smoothness, each every few steps (lazy regularisation)."""

    NAME: ClassVar[str] = "regularization"

    r1_gamma: NonNegative = 1.0
    """Weight of R1 on the dual discriminator."""
    r1_gamma_patch: NonNegative = 1.0
    """Weight of R1 on the patch discriminator."""
    r1_interval: Count = 16
    """Steps from one R1 to the next."""
    density_weight: NonNegative = 0.25
    """Weight of the density smoothness."""
    density_distance_stage1: NonNegative = 0.004
    """Standard deviation of the distance between compared points in stage 1, in world units."""
    density_distance_stage2: NonNegative = 0.002
    """Standard deviation of the distance between compared points in stage 2, in world units."""
    density_points: Count = 1000
    """Pairs of points compared in each sample."""
    density_interval: Count = 4
    """Steps from one density smoothness to the next."""


@dataclass(frozen=True)
class AugmentationConfig(Section):
    """Adaptive augmentation of both discriminators' images, for small data sets (StyleGAN2-ADA)."""

    NAME: ClassVar[str] = "augmentation"

    mode: Literal["none", "ada"] = "none"
    """No augmentation, or adaptive augmentation."""
    target: Annotated[float, inside(-1, 1)] = 0.6
    """Mean sign of the discriminator's logits on reals that the probability is adjusted towards."""
    interval: Count = 4
    """Steps from one adjustment to the next."""
    kimg: Positive = 500.0
    """Kimg over which the probability can go from 0 to 1."""
    kimg_resumed: Positive = 100.0
    """As `kimg`, where a run continues from trained weights (`start`)."""


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """Adam, for the generator and for both discriminators."""

    NAME: ClassVar[str] = "optimizer"

    generator_lr: Positive = 0.0025
    """Learning rate of the generator."""
    discriminator_lr: Positive = 0.002
    """Learning rate of both discriminators."""
    beta1: Decay = 0.0
    """Adam's decay of the first moment."""
    beta2: Decay = 0.99
    """Adam's decay of the second moment."""
    keep_moments: bool = False
    """Keeps Adam's moments of stage 1 in stage 2, and those of `start`; otherwise new moments begin there."""


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """What happens when, in thousands of images (kimg) that the discriminator has seen."""

    NAME: ClassVar[str] = "schedule"

    batch: Count = 32
    """Images of a step, over all workers."""
    accumulate: Count = 1
    """Parts into which each worker's share of a batch is split to save memory; gradients are the same."""
    stage1_kimg: Annotated[float, at_least(0), WholeBatches()] = 25000.0
    """Length of stage 1, which trains the 2D branch; 0 trains both branches from scratch."""
    stage2_kimg: Annotated[float, at_least(0), WholeBatches()] = 15000.0
    """Length of stage 2, which trains both branches."""
    reference_batch: Count | None = 32
    """The batch for which `ema_half_life_kimg` and `blur_kimg` are given: both are multiplied by
    batch / reference_batch; none takes them as they are."""
    ema_half_life_kimg: Positive = 10.0
    """Half-life of the generator's moving average."""
    ema_ramp_up: Positive | None = 0.05
    """The half-life is at most this share of the images so far; none, and a continued run, have no limit."""
    blur_sigma: NonNegative = 10.0
    """Initial σ of the blur of all that the discriminators see, in pixels; 0 is no blur."""
    blur_kimg: NonNegative = 200.0
    """Kimg over which the blur fades."""
    pose_swap_kimg: NonNegative = 1000.0
    """Kimg over which the probability of conditioning on another image's camera falls from 1 to its final
    value."""
    pose_swap_final: Fraction = 0.5
    """Final probability of conditioning the generator on another image's camera."""
    cooldown_kimg: NonNegative = 0.0
    """Kimg at the end of the run over which the learning rates fall linearly to 0; 0 keeps them constant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"a divisor of the batch ({self.batch} images)"
        require(self.batch % self.accumulate == 0, "schedule.accumulate", self.accumulate, expected)


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the images come from and how they are loaded."""

    NAME: ClassVar[str] = "data"

    uri: str = ""
    """URI of the data set."""
    cache_bytes: NonNegativeInt = 16 * 2**30
    """Disk that all processes of a machine together use to cache shards."""
    camera_balance: Fraction = 0.0
    """How far rare views are weighted up, among real and generated images: 0 not at all, 1 fully."""
    loader_workers: NonNegativeInt = 1
    """Processes that fetch and decode images for each training worker; 0 uses a thread of the worker."""
    max_bad_images: NonNegativeInt = 0
    """Undecodable images that are replaced, for each worker; one more ends the run."""
    patience_s: NonNegative = 300.0
    """Seconds for which transient errors of storage are retried."""


@dataclass(frozen=True)
class OutputConfig(Section):
    """How often a run writes checkpoints, image grids and log lines, and how much it measures."""

    NAME: ClassVar[str] = "output"

    checkpoint_kimg: Annotated[float, more_than(0), WholeBatches()] = 200.0
    """Kimg from one checkpoint to the next."""
    sample_kimg: Annotated[float, more_than(0), WholeBatches()] = 200.0
    """Kimg from one image grid to the next."""
    log_steps: Count = 50
    """Steps from one log line to the next."""
    metric_kimg: Annotated[float, more_than(0), WholeBatches()] | None = None
    """Kimg from one measurement of the metrics to the next; none measures at the ends of stages only."""
    metric_images: Annotated[int, at_least(2)] = 50000
    """Images that are generated for a Fréchet distance."""
    metric_identities: Count = 50
    """Identities whose views are compared for consistency."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept; the one that ends stage 1 always is."""
    keep_every_kimg: Positive | None = None
    """Checkpoints at multiples of this many kimg are kept as well."""
    keep_best: str = ""
    """A metric, such as fid_inception2015/3d, whose best checkpoint is kept as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        every, step = round((self.keep_every_kimg or 0) * 1000), round(self.checkpoint_kimg * 1000)
        require(
            every % max(step, 1) == 0,
            "output.keep_every_kimg",
            self.keep_every_kimg,
            f"a multiple of output.checkpoint_kimg ({self.checkpoint_kimg}), or none",
        )


@dataclass(frozen=True)
class Config:
    """Everything a run used. Written as YAML beside its results, it can be run again."""

    recipe: str = "custom"
    """Name of the recipe that the config comes from."""
    seed: NonNegativeInt = 0
    """Seed of all random numbers."""
    start: str = ""
    """Folder or URI of a training checkpoint or a generator whose weights the run begins with."""
    start_recipe: str = ""
    """Recipe whose stage 1 the run is fine-tuned from: `start` must then be given; empty needs none."""
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
        check_bounds(self, "")
        self._check_patches()
        self._check_branches()
        self._check_whole_batches()

    def _check_patches(self) -> None:
        resolution = self.model.image_resolution
        scale, patch = self.imitation.patch_scale, self.imitation.patch_resolution
        square = scale * resolution
        if patch is None:
            sides = [2**k for k in range(int(math.log2(SMALLEST_PATCH)), int(math.log2(resolution)) + 1)]
            expected = ", ".join(f"{side / resolution:g}" for side in sides)
            require(
                square in sides,
                "imitation.patch_scale",
                scale,
                f"one of {expected}, which give patches of a power of two of pixels, at least "
                f"{SMALLEST_PATCH}; any other scale needs imitation.patch_resolution",
            )
            return
        require(
            SMALLEST_PATCH <= patch <= square and math.log2(patch).is_integer(),
            "imitation.patch_resolution",
            patch,
            f"none or a power of two from {SMALLEST_PATCH} to imitation.patch_scale × "
            f"model.image_resolution ({square:g} pixels)",
        )

    def _check_branches(self) -> None:
        stage1 = self.schedule.stage1_kimg
        if self.model.architecture == "eg3d":
            require(stage1 > 0, "schedule.stage1_kimg", stage1, "more than 0: EG3D has no stage 2")
            require(self.model.branch_2d, "model.branch_2d", False, "true: EG3D has no other branch")
        if self.model.branch_2d:
            return
        mode = self.augmentation.mode
        require(mode == "none", "augmentation.mode", mode, "none: the 2D branch's images are augmented")
        without = "0: without the 2D branch there is"
        for key, value, missing in (
            ("schedule.stage1_kimg", stage1, "no stage 1"),
            ("rendering.guided_samples", self.rendering.guided_samples, "no depth to guide the samples"),
            ("imitation.lpips_weight", self.imitation.lpips_weight, "nothing to imitate"),
        ):
            require(value == 0, key, value, f"{without} {missing}")

    def _check_whole_batches(self) -> None:
        batch = self.schedule.batch
        for section in (self.schedule, self.output):
            for key, hint in field_types(type(section)).items():
                if not any(isinstance(mark, WholeBatches) for mark in metadata_of(hint)):
                    continue
                images = (getattr(section, key) or 0) * 1000
                whole = abs(images - round(images)) < 1e-6 and round(images) % batch == 0
                expected = f"a multiple of the batch ({batch} images)"
                require(whole, f"{section.NAME}.{key}", images / 1000, expected)

    @property
    def patch_resolution(self) -> int:
        """Rays along a patch's side."""
        whole = round(self.imitation.patch_scale * self.model.image_resolution)
        return self.imitation.patch_resolution or whole

    @property
    def joint(self) -> bool:
        """Whether both branches train together from scratch (the supplement, II.1)."""
        return self.stage1_nimg == 0 and not self.start

    def require_start(self) -> None:
        """Raises `ConfigError` where the run needs a start and has none."""
        expected = (
            f"the folder or URI of a checkpoint that ends stage 1 of {self.start_recipe}, from which "
            f"{self.recipe} is fine-tuned; start_recipe= trains from scratch"
        )
        require(bool(self.start or not self.start_recipe), "start", self.start, expected)

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
