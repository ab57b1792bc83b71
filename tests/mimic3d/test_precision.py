"""Half precision is where METHOD has it: in S2D, clamped, and nowhere else in the generator."""

import dataclasses

import pytest
import torch
from test_training import CONFIG, MeanAbsolute

from mimic3d.cameras import look_at
from mimic3d.config import ModelConfig, RenderingConfig, override
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator
from mimic3d.networks.generator import Generator
from mimic3d.networks.layers import Conv, SynthesisLayer
from mimic3d.networks.precision import working_dtype
from mimic3d.networks.superres import Superresolution
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)

MODEL = ModelConfig(32, 16, 8, 8, 8, 2, 64, 8, 64, 8, 16, (8, 8))
CAMERA = look_at(torch.tensor([[0.4, 0.5, 1.5]]), focal=1.1)


def generator(precision: str) -> Generator:
    torch.manual_seed(0)
    return Generator(dataclasses.replace(MODEL, precision=precision), RenderingConfig(1.0, 2.4, 1.2, 4, 4))


def drawn(G: Generator, branch: str) -> torch.Tensor:
    with torch.no_grad():
        w = G.mapping(torch.ones(1, 8), CAMERA)
        return G.view(G.planes(w), w, CAMERA, branch).image


def test_mixed_is_float16_on_a_gpu_and_the_inputs_own_type_elsewhere() -> None:
    x = torch.zeros(1)
    assert working_dtype("mixed", x) == torch.float32
    assert working_dtype("fp32", x.double()) == torch.float64
    assert working_dtype("bf16", x) == torch.bfloat16
    with torch.device("meta"):
        assert working_dtype("mixed", torch.zeros(1)) == torch.float32
    if torch.cuda.is_available():
        assert working_dtype("mixed", x.cuda()) == torch.float16
    for branch in ("2d", "3d"):
        assert torch.equal(drawn(generator("fp32"), branch), drawn(generator("mixed"), branch))


def test_bf16_changes_s2d_a_little_and_the_3d_branch_not_at_all() -> None:
    exact, half = generator("fp32"), generator("bf16")
    assert torch.equal(drawn(exact, "3d"), drawn(half, "3d"))
    a, b = drawn(exact, "2d"), drawn(half, "2d")
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    assert (a - b).norm() < 0.02 * a.norm()


def test_bf16_trains() -> None:
    G = generator("bf16")
    w = G.mapping(torch.randn(1, 8), CAMERA)
    G.branch_2d(G.planes(w, detail=False), w, CAMERA, stochastic=True).image.square().mean().backward()
    gradients = {n: p.grad for n, p in G.superresolution.named_parameters() if "noise" not in n}
    assert all(g.dtype == torch.float32 and g.isfinite().all() and g.any() for g in gradients.values())


@pytest.mark.parametrize("up", [False, True])
def test_float16_cannot_overflow_and_is_near_float32(up: bool) -> None:
    torch.manual_seed(0)
    layer = SynthesisLayer(512, 8, 4, 8, up=up, noise=False, clamp=256.0)
    x, w = torch.randn(2, 512, 8 // (1 + up), 8 // (1 + up)) * 200, torch.randn(2, 4) * 40
    plain = torch.nn.functional.conv2d(x * layer.affine(w)[:, :, None, None], layer.weight)
    assert plain.abs().max() > torch.finfo(torch.float16).max, "the sums themselves would overflow"
    with torch.no_grad():
        half, exact = layer(x.half(), w), layer(x, w)
    assert half.dtype == torch.float16 and half.isfinite().all()
    assert exact.abs().max() <= 256 and (half - exact).norm() < 0.005 * exact.norm()


def test_s2d_sums_its_rgb_outputs_in_full_precision() -> None:
    torch.manual_seed(0)
    s2d = Superresolution(32, (16, 8), 8, 8, 32, precision="bf16").requires_grad_(False)
    features, w = torch.randn(1, 32, 8, 8), torch.randn(1, 8)
    features[:, :3] = 1 + 2**-12  # lost in half precision
    for block in (s2d.block0, s2d.block1):
        for tensor in (block.torgb.weight, block.torgb.bias):
            tensor.zero_()
    assert torch.equal(s2d(features, w)[:, :, 8:-8, 8:-8].unique(), torch.tensor([1 + 2**-12]))


def test_all_convolutions_of_a_discriminator_are_clamped_where_it_is_float16() -> None:
    for precision, clamp in (("mixed", 256.0), ("fp32", None), ("bf16", None)):
        for network in (DualDiscriminator(64, 64, 8, precision), PatchDiscriminator(32, 64, 8, precision)):
            convolutions = [m for m in network.modules() if isinstance(m, Conv) and m.activation]
            assert network.b4.conv in convolutions and network.b8.conv1 in convolutions
            assert {each.clamp for each in convolutions} == {clamp}


def test_tf32_is_off_unless_the_config_allows_it() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (True, False):
            Trainer(override(CONFIG, {"model.allow_tf32": allowed}), MeanAbsolute())
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
