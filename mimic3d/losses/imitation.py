"""By which networks' features the 3D branch imitates the 2D branch: one, or several weighted ones.

The supplement leaves open whether VGG16, made for images of 224², is the best judge of small patches. Any
convolutional network of torchvision or timm can be named instead of it or beside it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimic3d.config import ConfigError, parse_extractors
from mimic3d.evaluation.features import IMAGENET_MEAN, IMAGENET_STD
from mimic3d.losses.perceptual import DISTANCE_NAMES, PerceptualDistance, enlarged

# AlexNet's layers that LPIPS reads, in torchvision's numbering: the five rectified convolutions.
ALEXNET_TAPS = (1, 4, 7, 9, 11)
# Networks shrink images 32 times; smaller patches are enlarged to this.
MIN_SIZE = 32
_LIBRARIES = ("torchvision", "timm")
_NOT_FEATURES = ("avgpool", "classifier", "fc", "head", "heads", "dropout", "aux1", "aux2", "AuxLogits")


class WeightedDistances(nn.Module):
    """The weighted sum of several distances between (N, 3, p, p) patches in [-1, 1]: (x, y) -> (N,)."""

    def __init__(self, distances: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.distances, self.weights = nn.ModuleList(distances), list(weights)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return sum(weight * each(x, y) for weight, each in zip(self.weights, self.distances, strict=True))


class FeatureDistance(nn.Module):
    """LPIPS's distance on any network's feature maps: unit length over channels, squared difference, mean.

    Args:
        levels: (N, 3, h, w), normalised as the network wants it, to its feature maps, coarser and coarser.
        mean, std: what the network's input is normalised by, of RGB in [0, 1].
        channel_weights: (C,) for each level, LPIPS's own; without them levels count equally, 1 in all.
    """

    def __init__(
        self,
        levels: nn.Module,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channel_weights: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 2, persistent=False)
        self.has_channel_weights = channel_weights is not None
        for index, weights in enumerate(channel_weights or ()):
            self.register_buffer(f"channels{index}", weights, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stays in evaluation mode: statistics of normalisation layers are fixed."""
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = ((enlarged(image, MIN_SIZE) - self.mean) / self.std for image in (x, y))
        with torch.no_grad():
            targets = [_unit_length(features) for features in self.levels(y)]
        distances = []
        for index, (features, target) in enumerate(zip(self.levels(x), targets, strict=True)):
            squared = (_unit_length(features) - target).square().mean(dim=(2, 3))
            if self.has_channel_weights:
                distances.append(squared @ getattr(self, f"channels{index}"))
            else:
                distances.append(squared.sum(dim=1) / len(targets))
        return sum(distances)


class Levels(nn.Module):
    """The feature maps of a sequence of layers: at the given ones, or at the end of each resolution."""

    def __init__(self, layers: Sequence[nn.Module], taps: Sequence[int] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.taps = taps
        for module in self.layers.modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # a feature map is read after the next layer has run

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            maps.append(layer(maps[-1] if maps else x))
        if self.taps is not None:
            return [maps[index] for index in self.taps]
        following = [*(level.shape[-1] for level in maps[1:]), 0]
        return [level for level, size in zip(maps, following, strict=True) if size < level.shape[-1]]


def imitation_distance(extractors: str, weights_of: Callable[[str], str | Path]) -> nn.Module:
    """The distance that `imitation.extractors` names: "lpips-vgg16:1,torchvision.convnext_tiny:0.5".

    Args:
        extractors: names, each with a weight after a colon or with 1: `lpips-vgg16` and `hed-vgg16`, whose
            weights come from `weights_of`; `lpips-alex`, `torchvision.NAME` and `timm.NAME`, whose weights
            the library itself fetches.
        weights_of: the safetensors file of a named network.
    Raises:
        ConfigError: a weight is none, there is no such network, or its weights cannot be had.
    """
    parsed = parse_extractors(extractors)
    distances = [_distance(name, weights_of) for name, _ in parsed]
    if len(parsed) == 1 and parsed[0][1] == 1:
        return distances[0]
    return WeightedDistances(distances, [weight for _, weight in parsed])


def _distance(name: str, weights_of: Callable[[str], str | Path]) -> nn.Module:
    if name in DISTANCE_NAMES:
        return PerceptualDistance.from_file(weights_of(name), name)
    if name == "lpips-alex":
        return lpips_alex(_fetched("torchvision", "alexnet").features)
    library, _, network = name.partition(".")
    if library in _LIBRARIES and network:
        return FeatureDistance(levels_of(_fetched(library, network), name))
    known = ", ".join([*DISTANCE_NAMES, "lpips-alex", *(f"{library}.NAME" for library in _LIBRARIES)])
    raise ConfigError(f"imitation.extractors names {name!r}, but must be of {known}")


def lpips_alex(layers: nn.Sequential) -> FeatureDistance:
    """LPIPS on AlexNet, the version that agrees best with people on small distortions.

    `layers` are torchvision's `alexnet().features`.
    """
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the perceptual distance needs the package lpips: pip install lpips")
    file = Path(package.origin).parent / "weights" / "v0.1" / "alex.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    weights = [state[f"lin{index}.model.1.weight"].flatten() for index in range(len(ALEXNET_TAPS))]
    # LPIPS's shift and scale of RGB in [-1, 1], as statistics of RGB in [0, 1].
    shift, scale = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
    mean, std = [(value + 1) / 2 for value in shift], [value / 2 for value in scale]
    return FeatureDistance(Levels(list(layers)[: ALEXNET_TAPS[-1] + 1], ALEXNET_TAPS), mean, std, weights)


def levels_of(network: Any, name: str) -> nn.Module:
    """The feature maps of one of torchvision's or timm's convolutional networks, one a resolution.

    Raises:
        ConfigError: it has none: it is no stack of convolutions.
    """
    if hasattr(network, "feature_info"):
        return network
    features = getattr(network, "features", None)
    parts = [(n, m) for n, m in network.named_children() if n not in _NOT_FEATURES]
    layers = list(features) if isinstance(features, nn.Sequential) else [module for _, module in parts]
    levels = Levels(layers).eval()
    try:
        with torch.no_grad():
            sizes = [level.shape[-1] for level in levels(torch.zeros(1, 3, 64, 64))]
    except (RuntimeError, AttributeError, TypeError, IndexError):
        sizes = []
    if len(sizes) < 2:
        raise ConfigError(f"{name} has no feature maps of several resolutions: name a convolutional network")
    return levels


def _fetched(library: str, network: str) -> Any:
    """A network with the weights that its library publishes, from the library's cache or the internet."""
    try:
        if library == "timm":
            import timm

            return timm.create_model(network, pretrained=True, features_only=True)
        from torchvision.models import get_model

        return get_model(network, weights="DEFAULT")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{library}.{network} needs the package {error.name}: pip install {library}"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"the weights of {library}.{network} cannot be had ({error}): run it once where the internet is, "
            "and bring TORCH_HOME or HF_HOME along"
        ) from None
    except (ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ConfigError(f"{library} has no network {network} of use here: {reason}") from None


def _unit_length(features: Tensor) -> Tensor:
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-20).rsqrt()
