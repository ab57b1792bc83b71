"""Feature maps of convolutional networks, one for each resolution, for perceptual distances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mimic3d.config import ConfigError

LIBRARIES = ("torchvision", "timm")
_WITHOUT_MAPS = ("avgpool", "classifier", "fc", "head", "heads", "dropout", "aux1", "aux2", "AuxLogits")


class FeatureMaps(nn.Module):
    """The feature maps of a sequence of layers: the outputs of given layers, or each resolution's last."""

    def __init__(self, layers: Sequence[nn.Module], taps: Sequence[int] | None = None) -> None:
        """
        Args:
            layers: are called one after another.
            taps: indices of the layers whose outputs are returned; the last of each resolution when None.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.taps = taps
        # A feature map is read after the next layer has run, which must not overwrite it.
        for module in self.layers.modules():
            if hasattr(module, "inplace"):
                setattr(module, "inplace", False)  # noqa: B010, mypy takes it for a submodule

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, h, w) to feature maps (N, C, h', w'), finest first."""
        maps: list[Tensor] = []
        for layer in self.layers:
            maps.append(layer(maps[-1] if maps else x))
        if self.taps is not None:
            return [maps[index] for index in self.taps]
        following = [*(each.shape[-1] for each in maps[1:]), 0]
        return [each for each, size in zip(maps, following, strict=True) if size < each.shape[-1]]


def feature_maps_of(network: nn.Module, name: str) -> nn.Module:
    """The part of one of torchvision's or timm's convolutional networks that returns its feature maps.

    Raises:
        ConfigError: the network has no feature maps of several resolutions.
    """
    if hasattr(network, "feature_info"):  # timm's networks made with features_only=True.
        return network
    features = getattr(network, "features", None)
    parts = [module for name, module in network.named_children() if name not in _WITHOUT_MAPS]
    maps = FeatureMaps(list(features) if isinstance(features, nn.Sequential) else parts).eval()
    try:
        with torch.no_grad():
            sizes = [each.shape[-1] for each in maps(torch.zeros(1, 3, 64, 64))]
    except (RuntimeError, AttributeError, TypeError, IndexError):
        sizes = []
    if len(sizes) < 2:
        raise ConfigError(f"{name} has no feature maps of several resolutions: name a convolutional network")
    return maps


def pretrained_network(library: str, network: str) -> nn.Module:
    """A network with the weights that its library publishes, from the library's cache or the internet.

    Args:
        library: one of `LIBRARIES`.
        network: its name in that library.
    Raises:
        ConfigError: the library is not installed or has no such network, or the weights cannot be fetched.
    """
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
            f"cannot fetch the weights of {library}.{network} ({error}): load them once on a machine with "
            "internet access and copy its TORCH_HOME or HF_HOME here"
        ) from None
    except (ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ConfigError(f"{library} has no usable network {network}: {reason}") from None
