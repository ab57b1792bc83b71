"""The sections of a run's configuration: every key with its type, its bounds and its meaning.

The docstring below a key is its entry in docs/config.md (`mimic3d.config.glossary`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

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
    inside,
    more_than,
    zero_or_at_least,
)
from mimic3d.config.values import require

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
    """`channel_base` of both discriminators."""
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
    """Numbers in S2D and the discriminators' four finest resolutions; mixed: float16 on GPUs (paper)."""
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
    """Whether rays that hit nothing are white instead of black."""
    guided_samples: Annotated[int, zero_or_at_least(4)] = 0
    """Samples of the 3D branch's rays, near the depth of the coarse planes; 0 takes the two passes above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.near < self.far, "rendering.near", self.near, f"less than rendering.far ({self.far})")


@dataclass(frozen=True)
class CameraConfig(Section):
    """Cameras that a generator is rendered from; training uses the data set's."""

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
    """Largest angle to either side of the front, in radians; pi is the full circle."""


@dataclass(frozen=True)
class ImitationConfig(Section):
    """Imitation of the 2D branch by the 3D branch, patch by patch (stage 2)."""

    NAME: ClassVar[str] = "imitation"

    patch_resolution: int | None = None
    """Rays along a side of a patch; none takes a ray for each pixel of the patch, fewer skip pixels."""
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
    """As `kimg`, in stage 2 and in runs that begin from trained weights (`start`)."""


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
    """Lengths and schedules, in thousands of images (kimg) that the discriminator has seen."""

    NAME: ClassVar[str] = "schedule"

    batch: Count = 32
    """Images of a step, over all workers."""
    accumulate: Count = 1
    """Parts into which each worker's share of a batch is split to save memory, with the same gradients."""
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
    """Largest half-life, as a share of the images so far; no limit with none or in a continued run."""
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
    """The data set and how it is loaded."""

    NAME: ClassVar[str] = "data"

    uri: str = ""
    """URI of the data set."""
    cache_bytes: NonNegativeInt = 16 * 2**30
    """Disk that all processes of a machine together use to cache shards."""
    camera_balance: Fraction = 0.0
    """Power of the weights of rare views, of real and generated images: 0 none, 1 full weights."""
    loader_workers: NonNegativeInt = 1
    """Processes that fetch and decode images for each training worker; 0 uses a thread of the worker."""
    max_bad_images: NonNegativeInt = 0
    """Undecodable images that are replaced, for each worker; one more ends the run."""
    patience_s: NonNegative = 300.0
    """Seconds for which transient errors of storage are retried."""


@dataclass(frozen=True)
class OutputConfig(Section):
    """Intervals of checkpoints, image grids, log lines and measurements, and the sizes of the latter."""

    NAME: ClassVar[str] = "output"

    checkpoint_kimg: Annotated[float, more_than(0), WholeBatches()] = 200.0
    """Kimg from one checkpoint to the next."""
    sample_kimg: Annotated[float, more_than(0), WholeBatches()] = 200.0
    """Kimg from one image grid to the next."""
    log_steps: Count = 50
    """Steps from one log line to the next."""
    metric_kimg: Annotated[float, more_than(0), WholeBatches()] | None = None
    """Kimg from one measurement of metrics to the next; none: only at the start and the ends of stages."""
    metric_images: Annotated[int, at_least(2)] = 50000
    """Images that are generated for a Fréchet distance."""
    metric_identities: Count = 50
    """Identities whose views are compared for consistency."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints are kept; the one at the end of stage 1 always is."""
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
