"""Convolutional networks as feature extractors: Inception-v3, and two stand-ins for it."""

from __future__ import annotations

import itertools
import tempfile

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mimic3d.features import imagenet
from mimic3d.features.efficientnet_lite import MIDDLE, efficientnet_lite2_middle
from mimic3d.features.extractor import FeatureExtractor, check_images, load_state, one_line


class MobileNetV2Features(FeatureExtractor):
    """ImageNet's MobileNetV2 (Sandler et al., 2018), pooled over the image: a stand-in for Inception.

    Images are resized to 96 x 96 (bilinear, antialiased), so that distances at different resolutions can be
    compared. They cannot be compared with published FID.
    """

    name = "mobilenetv2"
    dim = 1280
    input_size = 96
    mean: Tensor
    std: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """
        Args:
            weights: `features.*` under torchvision's names.
        Raises:
            ValueError: tensors missing, surplus or of the wrong shape.
        """
        super().__init__()
        from torchvision.models import mobilenet_v2

        with torch.device("meta"):
            self.features = mobilenet_v2().features
        own = {key.removeprefix("features."): value for key, value in weights.items()}
        load_state(self.features, own, "MobileNetV2")
        self.register_buffer("mean", torch.tensor(imagenet.MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(imagenet.STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()
        _fuse(self.features)
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        size = (self.input_size, self.input_size)
        images = nn.functional.interpolate(images.float() / 255, size=size, mode="bilinear", antialias=True)
        return self.features((images - self.mean) / self.std).mean(dim=(2, 3))


class EfficientNetLite2MiddleFeatures(FeatureExtractor):
    """The middle of ImageNet's EfficientNet-Lite2: 120 channels at 1/16 of the size, averaged.

    A stand-in for Inception that was chosen by calibration (docs/evaluation.md): unlike the last layers of
    MobileNetV2 and of this network, it orders snapshots of trainings as eyes do, and some hundred images are
    enough for its covariance. Images are resized to 64 x 64 (bilinear, antialiased).
    """

    name = "efficientnetlite2mid"
    dim = MIDDLE
    input_size = 64

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """
        Args:
            weights: the state of `efficientnet_lite.efficientnet_lite2_middle`.
        Raises:
            ValueError: tensors missing, surplus or of the wrong shape.
        """
        super().__init__()
        with torch.device("meta"):
            self.features = efficientnet_lite2_middle()
        load_state(self.features, weights, "EfficientNet-Lite2")
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        size = (self.input_size, self.input_size)
        images = nn.functional.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
        return self.features((images - 127) / 128).mean(dim=(2, 3))


def _fuse(network: nn.Module) -> None:
    """Fuses each batch normalisation into the convolution before it, which saves much time on CPUs."""
    for parent in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for before, after in itertools.pairwise(range(len(parent))):
            convolution, normalisation = parent[before], parent[after]
            if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
                parent[before] = fuse_conv_bn_eval(convolution, normalisation)
                parent[after] = nn.Identity()


class InceptionFeatures(FeatureExtractor):
    """The Inception-v3 of 2015-12-05 with FID's own resizing, as torch-fidelity ports it: pooled features."""

    name = "inception2015"
    dim = 2048

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """
        Args:
            weights: torch-fidelity's state of `FeatureExtractorInceptionV3`.
        Raises:
            ValueError: tensors missing, surplus or of the wrong shape.
        """
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The class reads weights from a pickle file only: one is written here, of plain tensors.
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save(weights, file)
            file.flush()
            try:
                self.network = FeatureExtractorInceptionV3(self.name, ["2048"], file.name)
            except RuntimeError as error:
                raise ValueError(f"these are not the weights of Inception-v3: {one_line(error)}") from None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        return self.network(images)[0]
