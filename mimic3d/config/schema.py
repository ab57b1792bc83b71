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
from typing import Any

from mimic3d.config.bounds import (
    NonNegativeInt,
    WholeBatches,
    check_bounds,
    field_types,
    metadata_of,
)
from mimic3d.config.sections import (
    SMALLEST_PATCH,
    AugmentationConfig,
    CameraConfig,
    DataConfig,
    ImitationConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RegularizationConfig,
    RenderingConfig,
    ScheduleConfig,
)
from mimic3d.config.values import ConfigError, build, flatten, require


@dataclass(frozen=True)
class Config:
    """Everything that a run used. Its YAML file beside the run's results can be trained again."""

    recipe: str = "custom"
    """Name of the recipe that the config comes from."""
    seed: NonNegativeInt = 0
    """Seed of all random numbers."""
    start: str = ""
    """Folder or URI of a training checkpoint or a generator whose weights the run begins with."""
    start_recipe: str = ""
    """Recipe whose stage 1 this one is fine-tuned from; if it is set, `start` is required."""
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
        """True if both branches train together from scratch (the supplement, II.1)."""
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


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dictionaries, lists and scalars, ready for YAML or JSON."""
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
