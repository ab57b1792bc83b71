"""DINOv2's and CLIP's networks are those of `transformers`, and see images as their protocols say."""

import pytest
import torch

from mimic3d.features.vision_transformer import ClipFeatures, DinoV2Features, VisionTransformer, quick_gelu

WIDTH, HIDDEN, PATCH, GRID, DEPTH, PROJECTED = 128, 256, 14, 5, 2, 32
# Of the first four features of two images, by transformers 5.24.0 on `random_weights`:
# Dinov2Model's last_hidden_state[:, 0], and CLIPVisionModelWithProjection's image_embeds.
DINOV2 = [[-1.05088, 0.44208, -0.96617, 0.3369], [-1.32395, -0.3964, 0.65652, -0.12279]]
CLIP = [[0.39455, -0.50952, -0.51188, 0.26787], [0.22785, 0.11131, -0.69322, -0.77296]]


def random_weights(*, dino: bool) -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "class_token": (WIDTH,),
        "positions": (1 + GRID**2, WIDTH),
        "patches.weight": (WIDTH, 3, PATCH, PATCH),
    }
    layers = {"attention.qkv": (3 * WIDTH, WIDTH), "attention.proj": (WIDTH, WIDTH)}
    layers |= {"fc1": (HIDDEN, WIDTH), "fc2": (WIDTH, HIDDEN)}
    for block in (f"blocks.{index}" for index in range(DEPTH)):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (WIDTH,), f"{block}.{norm}.bias": (WIDTH,)}
        for layer, shape in layers.items():
            shapes |= {f"{block}.{layer}.weight": shape, f"{block}.{layer}.bias": shape[:1]}
        if dino:
            shapes |= {f"{block}.scale1": (WIDTH,), f"{block}.scale2": (WIDTH,)}
    for norm in ["norm"] if dino else ["norm", "norm_before"]:
        shapes |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    shapes |= {"patches.bias": (WIDTH,)} if dino else {"projection": (WIDTH, PROJECTED)}
    source = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(shape, generator=source) * 0.1 + ("norm" in key and key.endswith("weight"))
        for key, shape in sorted(shapes.items())
    }


def images() -> torch.Tensor:
    return torch.randn((2, 3, GRID * PATCH, GRID * PATCH), generator=torch.Generator().manual_seed(1))


def test_the_networks_are_those_of_transformers() -> None:
    dino = VisionTransformer(random_weights(dino=True), "DINOv2")
    clip = VisionTransformer(random_weights(dino=False), "CLIP", activation=quick_gelu, epsilon=1e-5)
    for network, expected, dim in ((dino, DINOV2, WIDTH), (clip, CLIP, PROJECTED)):
        with torch.no_grad():
            found = network(images())
        assert found.shape == (2, dim) and network.dim == dim
        torch.testing.assert_close(found[:, :4], torch.tensor(expected), rtol=0, atol=2e-5)


def test_position_embeddings_are_resampled_as_dinov2s_authors_do() -> None:
    weights = random_weights(dino=True)
    ramp = torch.arange(float(GRID)).expand(GRID, GRID).reshape(-1, 1)
    weights["positions"] = torch.cat([torch.full((1, WIDTH), 7.0), ramp.expand(-1, WIDTH)])
    with torch.no_grad():
        found = VisionTransformer(weights, "DINOv2")._positions(4, 4)
    assert found.shape == (17, WIDTH) and found[0].eq(7).all()
    # Pixel i of 4 is at (i + 0.5) · 5 / 4.1 - 0.5; bicubic keeps a ramp but within two pixels of the border.
    expected = [(i + 0.5) * 5 / 4.1 - 0.5 for i in (1, 2)]
    torch.testing.assert_close(found[1:, 0].view(4, 4)[2, 1:3], torch.tensor(expected), rtol=0, atol=0.05)
    assert abs(expected[0] - (1.5 * 5 / 4 - 0.5)) > 0.04, "by the size alone it would be elsewhere"


def test_extractors_take_images_of_any_size() -> None:
    small = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for extractor in (DinoV2Features(random_weights(dino=True)), ClipFeatures(random_weights(dino=False))):
        features = extractor(small)
        assert features.shape == (2, extractor.dim) and features.isfinite().all()
        assert not features.allclose(extractor(small.flip(3)))
        with pytest.raises(ValueError, match="need uint8 images"):
            extractor(small.float())


@pytest.mark.parametrize("change", ["missing", "surplus", "no transformer"])
def test_other_weights_are_refused_in_one_line(change: str) -> None:
    weights = random_weights(dino=True)
    if change == "missing":
        del weights["norm.bias"]
    elif change == "surplus":
        weights["head.weight"] = torch.zeros(1)
    else:
        weights = {"features.0.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="these are not the weights of DINOv2: ") as error:
        DinoV2Features(weights)
    assert "\n" not in str(error.value)
