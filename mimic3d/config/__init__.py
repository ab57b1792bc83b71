"""The configuration of a run: its schema, its checks, and named recipes."""

from mimic3d.config.schema import (
    AugmentationConfig,
    CameraConfig,
    Config,
    ImitationConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RegularizationConfig,
    RenderingConfig,
    ScheduleConfig,
    fingerprint,
    from_dict,
    override,
    to_dict,
)
from mimic3d.config.values import ConfigError, flatten

__all__ = [
    "AugmentationConfig",
    "CameraConfig",
    "Config",
    "ConfigError",
    "ImitationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OutputConfig",
    "RegularizationConfig",
    "RenderingConfig",
    "ScheduleConfig",
    "fingerprint",
    "flatten",
    "from_dict",
    "override",
    "to_dict",
]
