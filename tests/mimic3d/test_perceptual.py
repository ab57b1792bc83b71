"""The perceptual distance: the lpips package's numbers, no graph for targets, no NaN gradients."""

import sys

import pytest
import torch
from torch import Tensor

from mimic3d.config import Config, override
from mimic3d.losses.imitation import FeatureDistance, feature_maps_of, imitation_distance, lpips_alex
from mimic3d.losses.perceptual import VGG16_BLOCKS, PerceptualDistance


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def random_vgg16() -> dict[str, Tensor]:
    """VGG16's convolutions at random (He) initialisation; real weights are tested where they are resolved."""
    generator = torch.Generator().manual_seed(0)
    tensors, index, width = {}, 0, 3
    for block in VGG16_BLOCKS:
        for out in block:
            scale = (2 / (9 * width)) ** 0.5
            tensors[f"features.{index}.weight"] = torch.randn(out, width, 3, 3, generator=generator) * scale
            tensors[f"features.{index}.bias"] = torch.randn(out, generator=generator) * 0.1
            index, width = index + 2, out
        index += 1
    return tensors


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_vgg16()


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(2, 3, 24, 33, generator=generator) * 2 - 1 for _ in range(2))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_is_the_packages(weights, images):
    import lpips

    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = {key: weights["features." + key.split(".", 1)[1]] for key in reference.net.state_dict()}
    reference.net.load_state_dict(state)
    distance = PerceptualDistance(weights, "lpips-vgg16")
    assert distance.name == "lpips_vgg16"
    torch.testing.assert_close(distance(*images), reference(*images).flatten(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("height, width", [(16, 16), (16, 32), (31, 17), (32, 64)])
def test_small_images_are_judged_as_by_plain_convolutions(weights, height, width):
    distance = PerceptualDistance(weights, "lpips-vgg16")
    image = torch.rand(2, 3, height, width) * 2 - 1
    hidden = (image - distance.shift) / distance.scale
    convolutions = [layer for block in distance.blocks for layer in block if hasattr(layer, "weight")]
    plain = iter(convolutions)
    for index, (widths, found) in enumerate(zip(VGG16_BLOCKS, distance.features(image), strict=True)):
        hidden = hidden if index == 0 else torch.nn.functional.max_pool2d(hidden, 2)
        for _ in widths:
            layer = next(plain)
            hidden = torch.relu(torch.nn.functional.conv2d(hidden, layer.weight, layer.bias, padding=1))
        torch.testing.assert_close(found, hidden, rtol=1e-4, atol=1e-5)


def test_the_stand_in_has_a_name_of_its_own_and_even_channel_weights(weights, images):
    stand_in, lpips = PerceptualDistance(weights, "hed-vgg16"), PerceptualDistance(weights, "lpips-vgg16")
    assert stand_in.name == "perceptual_hedvgg16"
    for i in range(5):
        even, fitted = getattr(stand_in, f"channels{i}"), getattr(lpips, f"channels{i}")
        assert even.std() < 1e-6 < fitted.std()
        torch.testing.assert_close(even.sum(), fitted.sum())
    assert not torch.allclose(stand_in(*images), lpips(*images))


def test_gradients_reach_the_first_images_alone(weights, images):
    distance = PerceptualDistance(weights, "hed-vgg16")
    x, y = (image.clone().requires_grad_() for image in images)
    distance(x, y).sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())
    assert distance(x, x.detach()).abs().max() < 1e-10
    smaller = distance(x - 1e-2 * x.grad / x.grad.norm(), y).sum()
    assert smaller < distance(x, y).sum()


def test_gradients_are_finite_where_no_feature_is_active(weights):
    dead = {key: (value * 0 if key.endswith("weight") else value * 0 - 1) for key, value in weights.items()}
    distance = PerceptualDistance(dead, "hed-vgg16")
    x = torch.zeros(1, 3, 16, 16, requires_grad=True)
    distance(x, torch.ones(1, 3, 16, 16)).sum().backward()
    assert x.grad.isfinite().all()


def test_invalid_shapes_are_refused(weights):
    distance = PerceptualDistance(weights, "hed-vgg16")
    with pytest.raises(ValueError, match=r"of RGB images of one shape; got \(1, 4, 16, 16\)"):
        distance(torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16))
    with pytest.raises(ValueError, match="one shape"):
        distance(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="'vgg'; known: lpips-vgg16, hed-vgg16"):
        PerceptualDistance(weights, "vgg")
    with pytest.raises(ValueError, match=r"have nothing at features.28.bias, shape \(512,\) expected"):
        PerceptualDistance({k: v for k, v in weights.items() if k != "features.28.bias"}, "hed-vgg16")


# Other networks, and several.


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lpips_on_alexnet_is_the_packages(images):
    import lpips
    from torchvision.models import alexnet

    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    layers = alexnet().features
    state = {"features." + key.split(".", 1)[1]: value for key, value in reference.net.state_dict().items()}
    layers.load_state_dict({key.removeprefix("features."): value for key, value in state.items()})
    x, y = (torch.nn.functional.interpolate(image, size=(48, 64)) for image in images)
    torch.testing.assert_close(lpips_alex(layers)(x, y), reference(x, y).flatten(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_any_convolutional_network_of_torchvision_gives_a_distance(images, name):
    from torchvision.models import get_model

    distance = FeatureDistance(feature_maps_of(get_model(name, weights=None), f"torchvision.{name}"))
    x, y = images[0].clone().requires_grad_(), images[1]
    found = distance(x, y)
    assert found.shape == (2,) and (found > 0).all()
    assert distance(x, x.detach()).abs().max() < 1e-10
    found.sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert not any(module.training for module in distance.train().modules())
    small = torch.rand(2, 3, 8, 8)
    assert distance(small, 1 - small).isfinite().all(), "patches of 8 pixels are enlarged"


def test_several_networks_are_weighted(weights, images, tmp_path):
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "weights.safetensors")
    asked = []

    def weights_of(name):
        asked.append(name)
        return tmp_path / "weights.safetensors"

    one = imitation_distance("lpips-vgg16", weights_of)
    both = imitation_distance("lpips-vgg16:2, hed-vgg16:0.5", weights_of)
    other = PerceptualDistance(weights, "hed-vgg16")
    torch.testing.assert_close(both(*images), 2 * one(*images) + 0.5 * other(*images))
    assert asked == ["lpips-vgg16", "lpips-vgg16", "hed-vgg16"]


def test_an_unavailable_extractor_is_one_line(monkeypatch):
    with pytest.raises(ValueError, match="names 'vgg', but known are lpips-vgg16, "):
        imitation_distance("vgg", str)
    with pytest.raises(ValueError, match="torchvision has no usable network nonsense"):
        imitation_distance("torchvision.nonsense", str)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm.resnet18 needs the package timm: pip install timm"):
        imitation_distance("timm.resnet18", str)
    with pytest.raises(ValueError, match=r"torchvision.vit has no feature maps of several resolutions"):
        feature_maps_of(torch.nn.Sequential(torch.nn.Flatten()), "torchvision.vit")
    for text in ("lpips-vgg16:0", ":1", "lpips-vgg16:x", "lpips-vgg16,,"):
        with pytest.raises(ValueError, match=r"imitation.extractors is"):
            override(Config(), {"imitation.extractors": text})
