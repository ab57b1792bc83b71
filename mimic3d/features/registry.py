"""The feature extractors for Fréchet and kernel distances, by the names of their feature weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from mimic3d.features.convolutional import (
    EfficientNetLite2MiddleFeatures,
    InceptionFeatures,
    MobileNetV2Features,
)
from mimic3d.features.extractor import FeatureExtractor
from mimic3d.features.vision_transformer import ClipFeatures, DinoV2Features

# Name of the feature weights (as in `mimic3d weights`) -> the extractor that uses them.
EXTRACTORS: dict[
    str,
    type[InceptionFeatures]
    | type[DinoV2Features]
    | type[ClipFeatures]
    | type[EfficientNetLite2MiddleFeatures]
    | type[MobileNetV2Features],
] = {
    "inception-2015-12-05": InceptionFeatures,
    "dinov2-vitl14": DinoV2Features,
    "clip-vitl14-336": ClipFeatures,
    "efficientnetlite2mid": EfficientNetLite2MiddleFeatures,
    "mobilenetv2": MobileNetV2Features,
}


def load_extractor(path: str | Path, name: str) -> FeatureExtractor:
    """Builds the extractor `name`, a key of `EXTRACTORS`, on the feature weights of a safetensors file.

    Raises:
        ValueError: unknown name, or weights of another network.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"no feature extractor is called {name!r}; known: {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](load_file(path))
