"""Vision transformers as feature extractors: DINOv2 (Oquab et al., 2023) and CLIP (Radford et al., 2021)."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimic3d.features import imagenet
from mimic3d.features.extractor import FeatureExtractor, check_images, load_state

_HEAD = 64
_BLOCK = re.compile(r"blocks\.(\d+)\.")


class Attention(nn.Module):
    """Self-attention with heads of 64 dimensions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to (N, T, width)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, width // _HEAD, _HEAD).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind()
        found = F.scaled_dot_product_attention(query, key, value)
        return self.proj(found.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Attention and a perceptron, each normalised before and added to its input.

    Args:
        scaled: what is added is scaled by channel ("layer scale").
    """

    def __init__(
        self, width: int, hidden: int, activation: Callable[[Tensor], Tensor], epsilon: float, scaled: bool
    ) -> None:
        super().__init__()
        self.activation = activation
        self.norm1, self.norm2 = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.attention = Attention(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale1 = nn.Parameter(torch.ones(width)) if scaled else None
        self.scale2 = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to (N, T, width)."""
        attended = self.attention(self.norm1(x))
        x = x + (attended if self.scale1 is None else attended * self.scale1)
        found = self.fc2(self.activation(self.fc1(self.norm2(x))))
        return x + (found if self.scale2 is None else found * self.scale2)


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al., 2021) with a class token; its sizes are its weights'.

    Args:
        weights: under the names of this module.
        whose: names the network in errors.
        activation: of the perceptrons.
        epsilon: of the layer normalisations.
    Raises:
        ValueError: tensors missing, surplus or of the wrong shape.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        whose: str,
        *,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        try:
            width, channels, self.patch, _ = weights["patches.weight"].shape
            self.grid = round((len(weights["positions"]) - 1) ** 0.5)
            hidden = len(weights["blocks.0.fc1.weight"])
        except (KeyError, ValueError):
            raise ValueError(
                f"these are not the weights of {whose}: no patches, positions or blocks"
            ) from None
        depth = 1 + max(int(found[1]) for key in weights if (found := _BLOCK.match(key)))
        with torch.device("meta"):
            self.class_token = nn.Parameter(torch.empty(width))
            self.positions = nn.Parameter(torch.empty(1 + self.grid**2, width))
            bias = "patches.bias" in weights
            self.patches = nn.Conv2d(channels, width, self.patch, stride=self.patch, bias=bias)
            self.norm_before = nn.LayerNorm(width, epsilon) if "norm_before.weight" in weights else None
            scaled = "blocks.0.scale1" in weights
            self.blocks = nn.Sequential(
                *(Block(width, hidden, activation, epsilon, scaled) for _ in range(depth))
            )
            self.norm = nn.LayerNorm(width, epsilon)
            projected = weights.get("projection")
            self.projection = None if projected is None else nn.Parameter(torch.empty(projected.shape))
        load_state(self, weights, whose)
        self.dim = width if projected is None else projected.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W), H and W multiples of the patch, to class features (N, dim)."""
        patches = self.patches(images)
        height, width = patches.shape[-2:]
        x = torch.cat([self.class_token.expand(len(images), 1, -1), patches.flatten(2).mT], dim=1)
        x = x + self._positions(height, width)
        if self.norm_before is not None:
            x = self.norm_before(x)
        features = self.norm(self.blocks(x)[:, 0])
        return features if self.projection is None else features @ self.projection

    def _positions(self, height: int, width: int) -> Tensor:
        """(1 + height · width, dim of a token): the position embeddings, resampled to another grid.

        As DINOv2's authors do it: bicubic, by the ratio of (size + 0.1) to the grid.
        """
        if (height, width) == (self.grid, self.grid):
            return self.positions
        grid = self.positions[1:].T.unflatten(1, (self.grid, self.grid))[None]
        ratio = ((height + 0.1) / self.grid, (width + 0.1) / self.grid)
        grid = F.interpolate(grid, scale_factor=ratio, mode="bicubic")
        return torch.cat([self.positions[:1], grid[0].flatten(1).T])


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


class TransformerFeatures(FeatureExtractor):
    """The class features of images that are resized (bicubic, antialiased, 8 bits) and normalised."""

    input_size: int
    mean: Tensor
    std: Tensor

    def __init__(self, network: VisionTransformer, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network, self.dim = network, network.dim
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        size = (self.input_size, self.input_size)
        pixels = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
        return self.network((pixels.clamp(0, 255).round() / 255 - self.mean) / self.std)


class DinoV2Features(TransformerFeatures):
    """DINOv2's ViT-L/14 at 224 x 224, by which Fréchet distances agree best with people's judgement (Stein et
    al., 2023)."""

    name = "dinov2"
    dim = 1024
    input_size = 224

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """
        Args:
            weights: those of `VisionTransformer`, with scales and without a projection.
        Raises:
            ValueError: tensors missing, surplus or of the wrong shape.
        """
        super().__init__(VisionTransformer(weights, "DINOv2"), imagenet.MEAN, imagenet.STD)


class ClipFeatures(TransformerFeatures):
    """CLIP's ViT-L/14 at 336 x 336, projected: the embeddings of CMMD (Jayasumana et al., 2024)."""

    name = "clipvitl14"
    dim = 768
    input_size = 336
    MEAN = (0.48145466, 0.4578275, 0.40821073)
    STD = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """
        Args:
            weights: those of `VisionTransformer`, with a projection and without scales.
        Raises:
            ValueError: tensors missing, surplus or of the wrong shape.
        """
        network = VisionTransformer(weights, "CLIP", activation=quick_gelu, epsilon=1e-5)
        super().__init__(network, self.MEAN, self.STD)
