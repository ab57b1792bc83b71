"""The configuration of a run: its schema with the bounds of every key, and named recipes."""

from mimic3d.config.schema import Config, fingerprint, from_dict, override, to_dict
from mimic3d.config.sections import (
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
    parse_extractors,
)
from mimic3d.config.values import ConfigError, differences, flatten
from mimic3d.config.yaml_text import config_from_yaml, config_to_yaml

__all__ = [
    "AugmentationConfig",
    "CameraConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "ImitationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OutputConfig",
    "RegularizationConfig",
    "RenderingConfig",
    "ScheduleConfig",
    "config_from_yaml",
    "config_to_yaml",
    "differences",
    "fingerprint",
    "flatten",
    "from_dict",
    "override",
    "parse_extractors",
    "to_dict",
]
