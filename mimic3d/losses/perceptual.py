"""The perceptual distance by which the 3D branch imitates the 2D branch: LPIPS (Zhang et al., 2018).

LPIPS needs the weights of torchvision's VGG16. Where these cannot be fetched, HED's (Xie & Tu, ICCV 2015:
VGG16 fine-tuned for edge detection) stand in, and the distance has another name.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# Output channels of VGG16's convolutions, in five blocks with a 2x max-pool between; LPIPS compares the
# features at the end of each block.
VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Smaller images are enlarged to this, in pixels.
MIN_SIZE = 16
# Up to this many pixels, a convolution is computed as a matrix product.
_FEW_PIXELS = 4

# Name of the feature weights (as in `mimic3d weights`) -> name of the distance in metrics.
DISTANCE_NAMES = {"lpips-vgg16": "lpips_vgg16", "hed-vgg16": "perceptual_hedvgg16"}

# By which LPIPS normalises RGB in [-1, 1].
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance(nn.Module):
    """LPIPS's distance between two batches of images; its weights are fixed.

    At the end of each of VGG16's five blocks, features are normalised to unit length over channels, and their
    squared differences weighted by channel and averaged over pixels.

    Attributes:
        name: `lpips_vgg16` for LPIPS itself, `perceptual_hedvgg16` for the stand-in.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: dict[str, Tensor], name: str) -> None:
        """
        Args:
            weights: the 13 convolutions under torchvision's names, `features.<index>.{weight,bias}`; they
                take RGB in [-1, 1] after LPIPS's shift and scale.
            name: of these weights, a key of `DISTANCE_NAMES`.
        Raises:
            ValueError: unknown name; tensors missing or of the wrong shape.
        """
        super().__init__()
        if name not in DISTANCE_NAMES:
            raise ValueError(f"no perceptual distance is called {name!r}; known: {', '.join(DISTANCE_NAMES)}")
        self.name = DISTANCE_NAMES[name]
        self.blocks = nn.ModuleList()
        index, width = 0, 3
        for block in VGG16_BLOCKS:
            layers = []
            for out in block:
                layers += [_convolution(weights, index, width, out, name), nn.ReLU(inplace=True)]
                index, width = index + 2, out
            self.blocks.append(nn.Sequential(*layers))
            index += 1  # the pooling layer's place in torchvision's numbering
        for i, channel_weights in enumerate(lpips_channel_weights("vgg", len(VGG16_BLOCKS))):
            if name != "lpips-vgg16":
                # The published weights belong to single channels of torchvision's VGG16. The channels of
                # another VGG16 have other meanings: only the balance between the blocks carries over.
                channel_weights = channel_weights.mean().expand_as(channel_weights)
            self.register_buffer(f"channels{i}", channel_weights.clone(), persistent=False)
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()
        # Kernels then have their taps outermost in memory: `_Convolution` reads the middle one alone, or all
        # as the rows of a matrix.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_file(cls, path: str | Path, name: str) -> PerceptualDistance:
        """The distance on the convolutions in a safetensors file.

        Args:
            name: of these weights, a key of `DISTANCE_NAMES`.
        """
        return cls(load_file(path), name)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each image in `x` from its counterpart in `y`.

        Args:
            x: (N, 3, h, w) in [-1, 1]; smaller than 16 pixels, it is enlarged. Gradients flow to it.
            y: as `x`; taken as constant.
        Returns:
            (N,), 0 for equal images.
        Raises:
            ValueError: shapes that differ, or are not of RGB images.
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(
                "the perceptual distance takes two batches of RGB images of one shape; "
                f"got {tuple(x.shape)} and {tuple(y.shape)}"
            )
        x, y = at_least_pixels(x, MIN_SIZE), at_least_pixels(y, MIN_SIZE)
        with torch.no_grad():
            targets = [unit_length(features) for features in self.features(y)]
        distance = x.new_zeros(x.shape[0])
        for i, (features, target) in enumerate(zip(self.features(x), targets, strict=True)):
            squared = (unit_length(features) - target).square()
            distance = distance + squared.mean(dim=(2, 3)) @ getattr(self, f"channels{i}")
        return distance

    def features(self, images: Tensor) -> list[Tensor]:
        """VGG16's features (N, C, h/2^k, w/2^k) at the end of blocks k = 0...4; `images` in [-1, 1]."""
        hidden = (images - self.shift) / self.scale
        outputs = []
        for i, block in enumerate(self.blocks):
            hidden = block(hidden if i == 0 else nn.functional.max_pool2d(hidden, 2))
            outputs.append(hidden)
        return outputs


def at_least_pixels(images: Tensor, least: int) -> Tensor:
    """(N, C, h, w), enlarged (bilinear) to `least` pixels a side where they are smaller."""
    smallest = min(images.shape[2:])
    if smallest >= least:
        return images
    size = [round(side * least / smallest) for side in images.shape[2:]]
    return nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def unit_length(features: Tensor) -> Tensor:
    """(N, C, h, w) divided by its norm over C."""
    # The epsilon is inside the root: the gradient of a pixel without active features is 0, not NaN.
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-20).rsqrt()


class _Convolution(nn.Conv2d):
    """A padded 3x3 convolution, computed in the fastest way for the image's size.

    On a few pixels, its time is that of reading its weights. On a single pixel, only the middle tap meets
    more than zeros. On a few, a matrix product reads the weights once, whereas a convolution on a CPU
    reorders them first.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height * width > _FEW_PIXELS:
            return super().forward(x)
        if height * width == 1:
            return nn.functional.linear(x.flatten(1), self.weight[:, :, 1, 1], self.bias)[:, :, None, None]
        around = nn.functional.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).unfold(1, 3, 1).unfold(2, 3, 1)
        around = around.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * x.shape[1])
        taps_last = self.weight.permute(0, 2, 3, 1).reshape(len(self.weight), -1)
        found = nn.functional.linear(around, taps_last, self.bias)
        return found.view(-1, height, width, len(self.weight)).permute(0, 3, 1, 2)


def _convolution(weights: dict[str, Tensor], index: int, width: int, out: int, name: str) -> nn.Conv2d:
    layer = nn.utils.skip_init(_Convolution, width, out, 3, padding=1)
    for part in ("weight", "bias"):
        key = f"features.{index}.{part}"
        own, given = getattr(layer, part), weights.get(key)
        if given is None or given.shape != own.shape:
            found = "nothing" if given is None else f"shape {tuple(given.shape)}"
            raise ValueError(
                f"the weights of {name} have {found} at {key}, shape {tuple(own.shape)} expected"
            )
        own.data.copy_(given)
    return layer


def lpips_channel_weights(network: str, levels: int) -> list[Tensor]:
    """LPIPS 0.1's channel weights (>= 0), (C,) for each level, as the package `lpips` ships them.

    Args:
        network: "vgg" or "alex".
        levels: how many feature maps of the network LPIPS compares.
    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    # The package is located, not imported: importing it would load all of torchvision.
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the perceptual distance needs the package lpips: pip install lpips")
    file = Path(package.origin).parent / "weights" / "v0.1" / f"{network}.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(levels)]
