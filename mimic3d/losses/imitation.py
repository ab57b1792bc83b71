"""The distance by which the 3D branch imitates the 2D branch: of one network's features, or of several.

The supplement leaves open whether VGG16, made for images of 224², is the best judge of small patches. Any
convolutional network of torchvision or timm can be named instead of it or beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mimic3d.config import ConfigError, parse_extractors
from mimic3d.features import imagenet
from mimic3d.features.maps import LIBRARIES, FeatureMaps, feature_maps_of, pretrained_network
from mimic3d.losses.perceptual import (
    DISTANCE_NAMES,
    LPIPS_SCALE,
    LPIPS_SHIFT,
    PerceptualDistance,
    at_least_pixels,
    lpips_channel_weights,
    unit_length,
)

# The layers of torchvision's AlexNet whose outputs LPIPS compares: the five convolutions, after their ReLU.
ALEXNET_TAPS = (1, 4, 7, 9, 11)
# Networks reduce images 32 times; smaller patches are enlarged to this.
MIN_SIZE = 32


class WeightedDistances(nn.Module):
    """The weighted sum of several distances between patches."""

    def __init__(self, distances: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.distances, self.weights = nn.ModuleList(distances), list(weights)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,) distances of (N, 3, p, p) patches in [-1, 1]."""
        weighted = [w * distance(x, y) for w, distance in zip(self.weights, self.distances, strict=True)]
        return torch.stack(weighted).sum(dim=0)


class FeatureDistance(nn.Module):
    """LPIPS's distance on any network's feature maps: unit length over channels, squared difference, mean."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        maps: nn.Module,
        mean: Sequence[float] = imagenet.MEAN,
        std: Sequence[float] = imagenet.STD,
        channel_weights: Sequence[Tensor] | None = None,
    ) -> None:
        """
        Args:
            maps: (N, 3, h, w), normalised as the network expects, to a list of feature maps.
            mean, std: by which the network's input is normalised, of RGB in [0, 1].
            channel_weights: LPIPS's own, (C,) for each feature map; when None, all maps count equally and
                their weights add up to 1.
        """
        super().__init__()
        self.maps = maps
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 2, persistent=False)
        self.has_channel_weights = channel_weights is not None
        for index, weights in enumerate(channel_weights or ()):
            self.register_buffer(f"channels{index}", weights, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stays in evaluation mode: the statistics of normalisation layers are fixed."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,) distances of (N, 3, p, p) patches in [-1, 1]; gradients reach `x` only."""
        x, y = ((at_least_pixels(image, MIN_SIZE) - self.mean) / self.std for image in (x, y))
        with torch.no_grad():
            targets = [unit_length(features) for features in self.maps(y)]
        distances = []
        for index, (features, target) in enumerate(zip(self.maps(x), targets, strict=True)):
            squared = (unit_length(features) - target).square().mean(dim=(2, 3))
            if self.has_channel_weights:
                distances.append(squared @ getattr(self, f"channels{index}"))
            else:
                distances.append(squared.sum(dim=1) / len(targets))
        return torch.stack(distances).sum(dim=0)


def imitation_distance(extractors: str, weights_file: Callable[[str], str | Path]) -> nn.Module:
    """The distance that `imitation.extractors` names: "lpips-vgg16:1,torchvision.convnext_tiny:0.5".

    Args:
        extractors: names, each with a weight after a colon or with weight 1: `lpips-vgg16` and `hed-vgg16`,
            whose feature weights come from `weights_file`; `lpips-alex`, `torchvision.NAME` and `timm.NAME`,
            whose feature weights the library fetches.
        weights_file: the path of the safetensors file of a named network.
    Raises:
        ConfigError: a weight is not a positive number, a network does not exist, or its feature weights
            cannot be fetched.
    """
    parsed = parse_extractors(extractors)
    distances = [_distance(name, weights_file) for name, _ in parsed]
    if len(parsed) == 1 and parsed[0][1] == 1:
        return distances[0]
    return WeightedDistances(distances, [weight for _, weight in parsed])


def _distance(name: str, weights_file: Callable[[str], str | Path]) -> nn.Module:
    if name in DISTANCE_NAMES:
        return PerceptualDistance.from_file(weights_file(name), name)
    if name == "lpips-alex":
        layers = pretrained_network("torchvision", "alexnet").features
        assert isinstance(layers, nn.Sequential)
        return lpips_alex(layers)
    library, _, network = name.partition(".")
    if library in LIBRARIES and network:
        return FeatureDistance(feature_maps_of(pretrained_network(library, network), name))
    known = ", ".join([*DISTANCE_NAMES, "lpips-alex", *(f"{library}.NAME" for library in LIBRARIES)])
    raise ConfigError(f"imitation.extractors names {name!r}, but known are {known}")


def lpips_alex(layers: nn.Sequential) -> FeatureDistance:
    """LPIPS on AlexNet, the version that agrees best with human judgement of small distortions.

    Args:
        layers: torchvision's `alexnet().features`.
    """
    # LPIPS's shift and scale of RGB in [-1, 1], as the mean and standard deviation of RGB in [0, 1].
    mean, std = [(value + 1) / 2 for value in LPIPS_SHIFT], [value / 2 for value in LPIPS_SCALE]
    maps = FeatureMaps(list(layers)[: ALEXNET_TAPS[-1] + 1], ALEXNET_TAPS)
    return FeatureDistance(maps, mean, std, lpips_channel_weights("alex", len(ALEXNET_TAPS)))
