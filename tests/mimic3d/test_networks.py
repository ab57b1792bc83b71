"""Layers against their literal definitions; shapes, conditioning and gradients of whole networks."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import Config, ModelConfig, RenderingConfig
from mimic3d.losses.adversarial import r1_penalty
from mimic3d.networks.aware3d import convolve_pooled
from mimic3d.networks.decoder import Decoder
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator, minibatch_std
from mimic3d.networks.generator import Generator
from mimic3d.networks.layers import (
    FullyConnected,
    NoiseBiasActivation,
    SynthesisLayer,
    ToRGB,
    _ScaleNoiseBiasLeaky,
    blur,
    blur_downsample,
    convolve,
    rms_normalize,
    upsample,
)

torch.set_num_threads(1)

RENDERING = RenderingConfig(1.0, 2.4, 1.2, 4, 4, True)
TINY = ModelConfig(32, 16, 8, 8, 8, 2, 64, 8, 64, 8, 16, (8, 8))
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


def tiny_generator(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    return Generator(TINY, RENDERING)


def some_cameras(count: int = 2) -> torch.Tensor:
    yaw = torch.linspace(0.2, 2, count)
    return look_at(on_sphere(yaw, torch.full((count,), 0.3), 1.7), focal=1.1)


def literal_fir(x: torch.Tensor, gain: float) -> torch.Tensor:
    """The filter over an already padded (N, C, H, W), tap by tap."""
    height, width = x.shape[2] - 3, x.shape[3] - 3
    out = torch.zeros(*x.shape[:2], height, width)
    for i, j in itertools.product(range(4), range(4)):
        out += TAPS[i] * TAPS[j] * gain * x[:, :, i : i + height, j : j + width]
    return out


# Resampling.


def test_upsampling_inserts_zeros_pads_and_filters() -> None:
    x = torch.randn(2, 3, 5, 5)
    stuffed = torch.zeros(2, 3, 10, 10)
    stuffed[:, :, ::2, ::2] = x
    assert torch.allclose(upsample(x), literal_fir(F.pad(stuffed, (2, 1, 2, 1)), gain=4), atol=1e-6)


def test_a_replicated_border_keeps_white_white_and_changes_nothing_within() -> None:
    white = torch.ones(1, 3, 8, 8)
    assert torch.equal(upsample(white, "replicate"), torch.ones(1, 3, 16, 16))
    assert upsample(white)[..., 0, 1:-1].allclose(torch.tensor(0.75))
    x = torch.randn(2, 3, 8, 8)
    inside = (..., slice(1, -1), slice(1, -1))
    assert torch.allclose(upsample(x, "replicate")[inside], upsample(x)[inside], atol=1e-6)


def test_blur_and_downsampling_are_the_filter() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(blur(x, 2), literal_fir(F.pad(x, (2, 2, 2, 2)), gain=1), atol=1e-6)
    expected = literal_fir(F.pad(x, (1, 1, 1, 1)), gain=1)[:, :, ::2, ::2]
    assert torch.allclose(blur_downsample(x), expected, atol=1e-6)


def test_an_upsampling_convolution_is_transposed_with_the_stored_kernel_then_filtered() -> None:
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3)
    grown = torch.zeros(2, 5, 9, 9)
    for i, j in itertools.product(range(4), range(4)):
        splat = torch.einsum("nc,ockl->nokl", x[:, :, i, j], weight)
        grown[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += splat
    expected = literal_fir(F.pad(grown, (1, 1, 1, 1)), gain=4)
    assert torch.allclose(convolve(x, weight, up=True), expected, atol=1e-4)


# Layers.


def test_a_learning_rate_multiplier_changes_no_value_at_the_start() -> None:
    torch.manual_seed(0)
    slow = FullyConnected(256, 64, lr_multiplier=0.01, bias_init=0.5)
    assert slow.weight.std().item() == pytest.approx(100, rel=0.05)
    out = slow(torch.randn(500, 256))
    assert out.mean().item() == pytest.approx(0.5, abs=0.1)
    assert out.std().item() == pytest.approx(1, rel=0.1)


def test_rms_normalisation_gives_unit_mean_square() -> None:
    x = rms_normalize(torch.randn(3, 50) * 7)
    assert torch.allclose(x.square().mean(dim=1), torch.ones(3))


@pytest.mark.parametrize("up", [False, True])
def test_a_modulated_convolution_is_the_one_with_a_kernel_for_each_sample(up: bool) -> None:
    torch.manual_seed(0)
    layer = SynthesisLayer(6, 5, 4, 8, up=up)
    torch.nn.init.normal_(layer.bias)
    torch.nn.init.constant_(layer.noise_strength, 0.7)
    x, w = torch.randn(3, 6, 4 if up else 8, 4 if up else 8), torch.randn(3, 4)
    style = layer.affine(w)
    kernels = layer.weight * style[:, None, :, None, None]
    kernels = kernels * (kernels.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    out = torch.cat([convolve(x[n : n + 1], kernels[n], up=up) for n in range(3)])
    out = out + layer.noise_const * 0.7 + layer.bias[:, None, None]
    expected = F.leaky_relu(out, 0.2) * 2**0.5
    assert torch.allclose(layer(x, w, "const"), expected, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("noise", [True, False])
def test_the_fused_end_of_a_layer_has_the_gradients_of_its_formula(groups: int, noise: bool) -> None:
    torch.manual_seed(0)
    shapes = {"x": (2, groups * 4, 5, 5), "scale": (2, groups * 4), "strength": (), "bias": (4,)}
    given = {name: torch.randn(shape, dtype=torch.double) for name, shape in shapes.items()}
    drawn = torch.randn(2, 1, 5, 5, dtype=torch.double) if noise else None
    found, expected = (
        {name: value.clone().requires_grad_() for name, value in given.items()} for _ in range(2)
    )
    out = _ScaleNoiseBiasLeaky.apply(found["x"], found["scale"], drawn, found["strength"], found["bias"])
    of = expected["x"] * expected["scale"][:, :, None, None]
    of = of + (0 if drawn is None else drawn * expected["strength"])
    literal = F.leaky_relu(of + expected["bias"].repeat(groups)[:, None, None], 0.2) * 2**0.5
    torch.testing.assert_close(out, literal)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (literal * weights).sum().backward()
    for name in given:
        torch.testing.assert_close(found[name].grad, expected[name].grad, msg=name)


def test_to_rgb_is_modulated_but_not_demodulated() -> None:
    torch.manual_seed(0)
    layer = ToRGB(9, 3, 4)
    torch.nn.init.normal_(layer.bias)
    x, w = torch.randn(2, 9, 4, 4), torch.randn(2, 4)
    kernel = layer.weight[:, :, 0, 0] * (layer.affine(w) / 3)[:, None]
    expected = torch.einsum("noc,nchw->nohw", kernel, x) + layer.bias[:, None, None]
    assert torch.allclose(layer(x, w), expected, atol=1e-5)


def pooled_neighbours(x: torch.Tensor) -> list[torch.Tensor]:
    """METHOD's concatenation for each plane of (N, 3, C, R, R): from XY, from YZ, from ZX."""
    xy, yz, zx = x.unbind(1)  # P_xy[y, x], P_yz[z, y], P_zx[x, z]
    size = x.shape[-1]

    def down_rows(profile: torch.Tensor) -> torch.Tensor:
        return profile[:, :, :, None].expand(-1, -1, size, size)

    def along_columns(profile: torch.Tensor) -> torch.Tensor:
        return profile[:, :, None, :].expand(-1, -1, size, size)

    mean_over_rows, mean_over_columns = (lambda p: p.mean(dim=2)), (lambda p: p.mean(dim=3))
    at_xy = [xy, down_rows(mean_over_rows(yz)), along_columns(mean_over_columns(zx))]
    at_yz = [along_columns(mean_over_columns(xy)), yz, down_rows(mean_over_rows(zx))]
    at_zx = [down_rows(mean_over_rows(xy)), along_columns(mean_over_columns(yz)), zx]
    return [torch.cat(planes, dim=1) for planes in (at_xy, at_yz, at_zx)]


@pytest.mark.parametrize(("kernel", "up"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_pooled_convolution_is_the_literal_concatenation(kernel: int, up: bool, size: int) -> None:
    torch.manual_seed(0)
    channels, out = 4, 5
    x = torch.randn(2, 3, channels, size, size, dtype=torch.float64)
    weight = torch.randn(out, 3 * channels, kernel, kernel, dtype=torch.float64)
    style = torch.randn(2, 3, 3 * channels, dtype=torch.float64)
    expected = [
        convolve(read * style[:, plane, :, None, None], weight, up=up)
        for plane, read in enumerate(pooled_neighbours(x))
    ]
    found = convolve_pooled(x.flatten(1, 2), weight, style, up=up)
    assert torch.allclose(found, torch.cat(expected, dim=1), atol=1e-10)


def test_minibatch_std_is_of_strided_groups() -> None:
    x = torch.randn(8, 3, 2, 2)
    found = minibatch_std(x)
    assert found.shape == (8, 1, 2, 2)
    for n in range(8):
        group = x[n % 2 :: 2]  # of 8 samples in groups of 4, every second
        expected = (group.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        assert torch.allclose(found[n], expected.expand(1, 2, 2), atol=1e-6)
    assert minibatch_std(x[:1]).max() < 1e-3, "one sample does not vary"


def test_the_decoder_gives_density_first_then_features_within_bounds() -> None:
    torch.manual_seed(0)
    decoder = Decoder(32)
    features = torch.randn(2, 7, 32) * 20
    density, colours = decoder(features)
    hidden = F.softplus(decoder.net["0"](features))
    out = decoder.net["2"](hidden)
    assert torch.allclose(density, out[..., :1], atol=1e-4)
    assert torch.allclose(colours, torch.sigmoid(out[..., 1:]) * 1.002 - 0.001, atol=1e-5)
    assert colours.min() >= -0.001 and colours.max() <= 1.001
    assert torch.allclose(decoder(features, 3)[1], colours[..., :3], atol=1e-6)


@pytest.mark.parametrize("each", [1, 2, 8])
def test_two_sets_in_one_pass_are_as_two_batches(each: int) -> None:
    torch.manual_seed(0)
    dual, patch = DualDiscriminator(32, 64, 8), PatchDiscriminator(16, 64, 8)
    fake, real = ((torch.randn(each, 3, 32, 32), torch.randn(each, 3, 16, 16)) for _ in range(2))
    camera = torch.cat([some_cameras(1)] * 2 * each)
    both = dual(*map(torch.cat, zip(fake, real, strict=True)), camera, sets=2)
    alone = torch.cat([dual(*fake, camera[:each]), dual(*real, camera[each:])])
    assert torch.allclose(both, alone, atol=1e-5)
    patches = torch.cat([fake[1], real[1]])
    both = patch(patches, sets=2)
    assert torch.allclose(both, torch.cat([patch(fake[1]), patch(real[1])]), atol=1e-5)
    assert not torch.allclose(both, patch(patches), atol=1e-5), "one batch's samples are all compared"


# Whole networks.


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
def test_every_size_has_the_shapes_it_should(resolution: int) -> None:
    torch.manual_seed(0)
    model = ModelConfig(resolution, 16, 16, 8, 8, 2, 256, 8, 256, 8, resolution // 2, (8, 8))
    generator = Generator(model, RENDERING)
    camera, patch = some_cameras(1), Config().patch_resolution
    with torch.no_grad():
        w = generator.mapping(torch.randn(1, 8), camera)
        planes = generator.planes(w)
        view = generator.view(planes, w, camera, "2d")
        assert w.shape == (1, 6, 8)
        assert planes.coarse.shape == (1, 3, 32, 16, 16) and planes.detail.shape == (1, 3, 32, 32, 32)
        assert view.image.shape == (1, 3, resolution, resolution)
        assert view.raw.shape == (1, 3, 16, 16) and view.depth.shape == (1, 1, 16, 16)
        full = generator.view(planes, w, camera, "3d")
        assert full.image.shape == full.raw.shape == (1, 3, resolution, resolution)
        assert full.depth.shape == (1, 1, resolution, resolution)
        assert full.depth.min() >= 1.0 and full.depth.max() <= 2.4 + 1.4 / 3
        assert DualDiscriminator(resolution, 256, 8)(view.image, view.raw, camera).shape == (1, 1)
        assert PatchDiscriminator(patch, 256, 8)(torch.zeros(3, 3, patch, patch)).shape == (3, 1)


def test_the_papers_size_is_built() -> None:
    with torch.device("meta"):
        generator = Generator(ModelConfig(), RenderingConfig())
        dual, patch = DualDiscriminator(512, 32768, 512), PatchDiscriminator(64, 32768, 512)
    synthesis = generator.backbone.synthesis
    assert synthesis.num_ws == 14
    assert synthesis.b256.conv1.weight.shape == (128, 128, 3, 3)
    assert synthesis.b3d256.block.conv0.weight.shape == (32, 96, 3, 3)
    assert synthesis.b3d256.block.conv0.affine.weight.shape == (3 * 96, 512)
    assert synthesis.b3d256.block2.conv0.noise_const.shape == (512, 512)
    assert generator.superresolution.block1.conv1.weight.shape == (128, 128, 3, 3)
    assert dual.resolutions == [512, 256, 128, 64, 32, 16, 8] and patch.resolutions == [64, 32, 16, 8]
    assert sum(p.numel() for p in generator.parameters()) > 25e6


def test_planes_of_another_width_reach_both_branches() -> None:
    generator, camera = Generator(replace(TINY, plane_channels=5), RENDERING), some_cameras()
    planes = generator.planes(generator.mapping(torch.randn(2, 8), camera))
    assert planes.coarse.shape == (2, 3, 5, 8, 8) and planes.detail.shape == (2, 3, 5, 16, 16)
    assert generator.decoder.net["0"].weight.shape == (10, 5)
    assert generator.superresolution.block0.conv0.weight.shape[1] == 5
    w = generator.mapping(torch.randn(2, 8), camera)
    for branch in generator.branches:
        assert generator.view(planes, w, camera, branch).image.shape == (2, 3, 32, 32)


def test_the_3d_branch_has_gradients_in_the_triplane_but_not_in_s2d() -> None:
    generator, camera = tiny_generator(), some_cameras()
    w = generator.mapping(torch.randn(2, 8), camera)
    generator.branch_3d(generator.planes(w), camera, torch.rand(50, 2)).features.square().sum().backward()
    named = dict(generator.named_parameters())
    untouched = {name for name, p in named.items() if p.grad is None}
    assert untouched == {name for name in named if name.startswith("superresolution.")}
    silent = {
        name
        for name, p in named.items()
        if p.grad is not None and not p.grad.any() and p.grad.isfinite().all()
    }
    assert silent == set()


def test_the_2d_branch_does_not_reach_s3d() -> None:
    generator, camera = tiny_generator(), some_cameras()
    w = generator.mapping(torch.randn(2, 8), camera)
    generator.branch_2d(generator.planes(w, noise="random"), w, camera).image.square().sum().backward()
    named = dict(generator.named_parameters())
    untouched = {name for name, p in named.items() if p.grad is None}
    s3d = {name for name in named if ".block2." in name or ".block3." in name}
    unused_noise = {n for n in named if n.startswith("superresolution.") and n.endswith("noise_strength")}
    assert untouched == s3d | unused_noise


def test_the_discriminator_depends_on_the_camera() -> None:
    torch.manual_seed(0)
    dual = DualDiscriminator(32, 256, 16)
    image, raw = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 16)
    one, other = some_cameras(2).split(1)
    logits = dual(image, raw, one.expand(2, -1))
    assert not torch.allclose(logits, dual(image, raw, other.expand(2, -1)), atol=1e-4)
    assert not torch.allclose(logits, dual(image, raw * 0, one.expand(2, -1)), atol=1e-4)


def test_r1_is_the_squared_gradient_and_can_be_differentiated_again() -> None:
    images = torch.randn(4, 3, 2, 2, requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    penalty = r1_penalty((images * scale).sum(dim=(1, 2, 3))[:, None], [images])
    assert penalty.tolist() == pytest.approx([9 * 12] * 4)
    penalty.mean().backward()
    assert scale.grad.item() == pytest.approx(2 * 3 * 12)

    torch.manual_seed(0)
    dual = DualDiscriminator(32, 256, 8)
    image, raw = torch.randn(2, 3, 32, 32, requires_grad=True), torch.randn(2, 3, 16, 16, requires_grad=True)
    r1_penalty(dual(image, raw, some_cameras()), [image, raw]).mean().backward()
    gradients = {name: p.grad for name, p in dual.named_parameters()}
    kernels = [name for name in gradients if name.endswith("weight")]
    assert all(gradients[name].isfinite().all() and gradients[name].any() for name in kernels)


def test_the_image_does_not_depend_on_the_chunk_size() -> None:
    generator, camera = tiny_generator().eval(), some_cameras()
    with torch.no_grad():
        w = generator.mapping(torch.randn(2, 8), camera)
        planes = generator.planes(w)
        whole = generator.view(planes, w, camera, "3d")
        pieces = generator.view(planes, w, camera, "3d", max_points=1000)
    assert torch.allclose(whole.image, pieces.image, atol=1e-6)
    assert torch.allclose(whole.depth, pieces.depth, atol=1e-6)


def test_truncation_to_zero_gives_one_object_for_all_latents() -> None:
    generator, camera = tiny_generator().eval(), some_cameras(1).expand(3, -1)
    torch.nn.init.normal_(generator.backbone.mapping.w_avg)
    z = torch.randn(3, 8)
    with torch.no_grad():
        w = generator.mapping(z, camera, truncation=0)
        assert torch.equal(w, generator.backbone.mapping.w_avg.expand_as(w))
        full, half = generator.mapping(z, camera), generator.mapping(z, camera, truncation=0.5)
        assert torch.allclose(half, (full + w) / 2, atol=1e-6)
        cut = generator.mapping(z, camera, truncation=0, truncation_cutoff=2)
        assert torch.equal(cut[:, :2], w[:, :2]) and torch.equal(cut[:, 2:], full[:, 2:])
        image = generator.view(generator.planes(w), w, camera, "3d").image
        assert torch.allclose(image, image[:1].expand_as(image), atol=1e-6)
        varied = generator.view(generator.planes(full), full, camera, "3d").image
    assert (varied[0] - varied[1]).abs().max() > 1e-3


def test_the_average_w_moves_towards_the_batch() -> None:
    mapping, z = tiny_generator().backbone.mapping, torch.randn(4, 8)
    w = mapping(z, some_cameras(4), update_w_avg=True)
    assert torch.allclose(mapping.w_avg, 0.002 * w[:, 0].detach().mean(dim=0), atol=1e-7)


def test_noise_is_constant_random_or_absent() -> None:
    generator, camera = tiny_generator(), some_cameras(1)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.5)
    with torch.no_grad():
        w = generator.mapping(torch.randn(1, 8), camera)

        def detail(noise: str) -> torch.Tensor:
            return generator.planes(w, noise=noise).detail

        assert torch.equal(detail("const"), detail("const"))
        assert torch.equal(detail("none"), detail("none"))
        assert not torch.equal(detail("random"), detail("random"))
        assert not torch.equal(detail("const"), detail("none"))
    with pytest.raises(ValueError, match="must be one of random, const, none"):
        generator.planes(w, noise="some")


def test_a_branch_that_does_not_exist_is_refused() -> None:
    generator, camera = tiny_generator(), some_cameras(1)
    w = generator.mapping(torch.randn(1, 8), camera)
    with pytest.raises(ValueError, match="must be one of 2d, 3d"):
        generator.view(generator.planes(w), w, camera, "4d")
    with pytest.raises(ValueError, match="needs detail planes"):
        generator.view(generator.planes(w, detail=False), w, camera, "3d")


def test_random_noise_is_one_map_for_each_plane_and_the_stored_one_is_for_all() -> None:
    layer = NoiseBiasActivation(4, 8, noise=True).requires_grad_(False)
    layer.noise_strength.fill_(0.5)
    for groups in (1, 3):
        zero, scale = torch.zeros(2, 4 * groups, 8, 8), torch.ones(2, 4 * groups)
        by_plane = layer.finish(zero.clone(), scale, "random").unflatten(1, (groups, 4))
        assert (by_plane == by_plane[:, :, :1]).all(), "the channels of a plane share its map"
        maps = by_plane[:, :, 0].flatten(0, 1)
        assert len({float(noise[0, 0]) for noise in maps}) == 2 * groups, "and no two planes or samples do"
        stored = layer.finish(zero, scale, "const")
        assert (stored == stored[:1, :1]).all()
