"""The base class of feature extractors: a network with fixed weights, from images to feature vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class FeatureExtractor(nn.Module, ABC):
    """A network with fixed weights, from images to feature vectors.

    Attributes:
        name: its name in metrics (`fd_<name>/3d`).
        dim: features per image.
    """

    name: str
    dim: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 RGB of any size to (N, dim) float32.

        Raises:
            ValueError: images of another type or shape.
        """


def check_images(images: Tensor) -> None:
    """Raises ValueError unless `images` are (N, 3, H, W) uint8."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"features need uint8 images (N, 3, H, W); got {images.dtype} {tuple(images.shape)}")


def load_state(network: nn.Module, weights: dict[str, Tensor], whose: str) -> None:
    """Makes `weights` the network's, without a copy.

    Raises:
        ValueError: tensors missing, surplus or of the wrong shape: not the weights of `whose`.
    """
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of {whose}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """PyTorch's error about weights that do not fit, in one line."""
    lines = str(error).strip().splitlines()
    return " ".join(lines[1].split())[:200] if len(lines) > 1 else lines[0]
