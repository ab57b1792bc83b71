"""The authors' files of DINOv2 and CLIP become our networks, and nothing in them is executed."""

import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mimic3d.features.vision_transformer import VisionTransformer, quick_gelu
from mimic3d_platform.evaluation.feature_networks import NETWORKS
from mimic3d_platform.evaluation.torchscript_tensors import torchscript_tensors

WIDTH, PATCH, GRID, PROJECTED = 128, 14, 2, 32


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualBlock(nn.Module):
    """CLIP's block, under the names of its file."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 2 * WIDTH))
        self.mlp.add_module("gelu", QuickGelu())
        self.mlp.add_module("c_proj", nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(ResidualBlock(), ResidualBlock())

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class Visual(nn.Module):
    """The image half of CLIP, under the names of its file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(GRID**2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer()
        self.proj = nn.Parameter(torch.randn(WIDTH, PROJECTED))

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Visual()
        self.logit_scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.visual(image) * self.logit_scale


def test_a_clip_archive_becomes_the_network_that_it_holds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip, images = Clip().eval(), torch.randn(2, 3, GRID * PATCH, GRID * PATCH)
    with torch.no_grad():
        expected = clip.visual(images)
    path = tmp_path / "clip.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch wants other formats now; the authors' file has this one.
        torch.jit.save(torch.jit.trace(clip, images, check_trace=False), path)
    weights = NETWORKS["clip-vitl14-336"].convert(path)
    network = VisionTransformer(weights, "CLIP", activation=quick_gelu, epsilon=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_a_dinov2_file_becomes_the_weights_of_the_network(tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "mask_token": (1, WIDTH),
        "pos_embed": (1, 1 + GRID**2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    layers = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (256, WIDTH)}
    for layer, shape in (layers | {"mlp.fc2": (WIDTH, 256)}).items():
        shapes |= {f"blocks.0.{layer}.weight": shape, f"blocks.0.{layer}.bias": shape[:1]}
    for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
        shapes[f"blocks.0.{name}"] = (WIDTH,)
    state = {key: torch.randn(shape, generator=source) for key, shape in shapes.items()}
    torch.save(state, tmp_path / "dinov2.pth")
    weights = NETWORKS["dinov2-vitl14"].convert(tmp_path / "dinov2.pth")
    network = VisionTransformer(weights, "DINOv2")
    assert torch.equal(network.class_token, state["cls_token"][0, 0])
    assert torch.equal(network.positions, state["pos_embed"][0])
    assert torch.equal(network.blocks[0].attention.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert torch.equal(network.blocks[0].scale2, state["blocks.0.ls2.gamma"])


class Poison:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("content", [b"not an archive", None])
def test_another_file_is_refused_and_not_executed(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "clip.pt"
    if content is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("clip/data.pkl", pickle.dumps(Poison()))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a TorchScript archive of weights"):
        torchscript_tensors(path)
    assert not (tmp_path / "executed").exists()
