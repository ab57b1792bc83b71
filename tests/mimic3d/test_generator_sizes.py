"""The generator at every size, its variants, its memory, and what PyTorch may do to make it faster."""

import copy
import dataclasses
import itertools
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from mimic3d.cameras import look_at
from mimic3d.config import Config, ImitationConfig, ModelConfig, RenderingConfig
from mimic3d.networks.generator import Generator, build_generator, points_within

torch.set_num_threads(1)

RENDERING = RenderingConfig(1.0, 2.4, 1.2, 4, 4, True)
TINY = ModelConfig(32, 16, 8, 8, 8, 2, 64, 8, 64, 8, 16, (8, 8))
CAMERAS = look_at(torch.tensor([[0.4, 0.5, 1.5], [-1.0, 0.2, 1.2]]), focal=1.1)
# Image size: what S2D resizes to, and its channels.
S2D = {128: (64, (128, 64)), 256: (128, (128, 64)), 512: (128, (256, 128)), 1024: (256, (128, 64))}


def tiny(seed: int = 0, **changes) -> Generator:
    torch.manual_seed(seed)
    return Generator(dataclasses.replace(TINY, **changes), RENDERING)


def both_branches(G: Generator) -> tuple[Tensor, Tensor]:
    """The 2D branch's images and some rays of the 3D branch, of fixed latents."""
    w = G.mapping(torch.ones(2, 8), CAMERAS)
    planes = G.planes(w)
    uv = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    return G.branch_2d(planes, w, CAMERAS).image, G.branch_3d(planes, CAMERAS, uv).features


def drawn_and_learned(G: Generator) -> tuple[list[Tensor], dict[str, Tensor]]:
    image, colours = both_branches(G)
    G.zero_grad()
    (image.square().mean() + colours.square().mean()).backward()
    gradients = {name: p.grad.clone() for name, p in G.named_parameters() if p.grad is not None}
    return [image.detach(), colours.detach()], gradients


def assert_near(found: tuple, expected: tuple, tolerance: float = 1e-4) -> None:
    for a, b in zip(found[0], expected[0], strict=True):
        assert (a - b).norm() <= tolerance * b.norm()
    assert found[1].keys() == expected[1].keys()
    largest = max(float(g.norm()) for g in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= tolerance * largest, name


@pytest.mark.parametrize("size", S2D)
def test_the_papers_sizes_and_twice_the_largest_are_built(size: int) -> None:
    s2d_input, channels = S2D[size]
    neural = 128 if size == 1024 else 64
    model = ModelConfig(size, neural, superresolution_input=s2d_input, superresolution_channels=channels)
    patch = dataclasses.replace(Config().imitation, patch_scale=64 / size)
    config = Config(model=model, imitation=patch)
    with torch.device("meta"):
        s2d = Generator(config.model, config.rendering).superresolution
        image = s2d(torch.zeros(1, 32, neural, neural), torch.zeros(1, 512))
    assert image.shape == (1, 3, size, size)
    assert s2d.block0.up == (size >= 512) and s2d.block1.up
    assert (s2d.block0.conv1.weight.shape[0], s2d.block1.conv1.weight.shape[0]) == channels


def test_a_1024_generator_renders_both_branches() -> None:
    size = {"image_resolution": 1024, "discriminator_channel_base": 1024}
    G = tiny(**size, neural_rendering_resolution=32, superresolution_input=256).eval()
    with torch.no_grad():
        image, colours = both_branches(G)
    assert image.shape == (2, 3, 1024, 1024) and colours.shape == (2, 40, 3)
    assert image.isfinite().all() and colours.isfinite().all()


def test_all_parameters_of_the_eg3d_baseline_have_gradients() -> None:
    G = tiny(architecture="eg3d")
    w = G.mapping(torch.randn(2, 8), CAMERAS)
    planes = G.planes(w, noise="random")
    assert planes.detail is None and not any("b3d" in name for name, _ in G.named_parameters())
    G.branch_2d(planes, w, CAMERAS, stochastic=True).image.square().mean().backward()
    still = {name for name, p in G.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {n for n in still if n.startswith("superresolution.") and n.endswith("noise_strength")}


def test_detail_planes_that_begin_as_zeros_have_gradients() -> None:
    model, imitation = dataclasses.replace(TINY, detail_init=0.0), ImitationConfig(patch_scale=0.5)
    config = Config(model=model, rendering=RENDERING, imitation=imitation)
    torch.manual_seed(0)
    G = build_generator(config)
    w = G.mapping(torch.ones(2, 8), CAMERAS)
    uv = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    planes = G.planes(w, noise="random")
    assert planes.detail is not None and not planes.detail.any()
    G.branch_3d(planes, CAMERAS, uv).features.square().sum().backward()
    assert G.backbone.synthesis.b3d8.block3.torgb.weight.grad.any()
    torch.manual_seed(0)
    as_published = build_generator(dataclasses.replace(config, model=TINY))
    differ = {n for n, p in as_published.named_parameters() if not torch.equal(p, G.get_parameter(n))}
    assert differ == {"backbone.synthesis.b3d8.block3.torgb.weight"}


def test_3d_aware_s3d_depends_on_all_three_planes() -> None:
    plain, aware = tiny(), tiny(aware_s3d=True)
    for G, width in ((plain, 32), (aware, 96)):
        last = G.backbone.synthesis.b3d8
        assert last.block2.conv0.weight.shape[1] == last.block3.torgb.weight.shape[1] == width

    def reach(G: Generator) -> list[bool]:
        """Whether the first detail plane depends on each of the coarse planes."""
        last, coarse = G.backbone.synthesis.b3d8, torch.randn(1, 96, 8, 8, requires_grad=True)
        last.super_resolve(coarse, torch.ones(1, 8), "const")[:, :32].square().sum().backward()
        return [bool(plane.any()) for plane in coarse.grad.unflatten(1, (3, 32))[0]]

    assert reach(plain) == [True, False, False] and reach(aware) == [True, True, True]
    drawn_and_learned(aware)
    assert all(p.grad.isfinite().all() for p in aware.backbone.synthesis.b3d8.parameters())


def test_channels_last_gives_the_same_numbers() -> None:
    G = tiny()
    expected = drawn_and_learned(G)
    assert_near(drawn_and_learned(copy.deepcopy(G).to(memory_format=torch.channels_last)), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_gives_the_same_numbers(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    G = tiny()
    expected = drawn_and_learned(G)
    compiled = copy.deepcopy(G)
    compiled.decoder.compile()
    # S2D is captured whole, forwards and backwards; to make C++ of it takes a minute.
    compiled.superresolution.compile(backend="aot_eager", fullgraph=True)
    assert_near(drawn_and_learned(compiled), expected)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that PyTorch's allocator has lent at once, temporaries within operators included."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    lent = (
        event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    )
    return max(itertools.accumulate(lent), default=0)


def test_rendering_stays_within_its_memory_bound() -> None:
    assert points_within(2**20) == 512 and points_within(1) == 1
    model = ModelConfig(128, 16, 64, 8, 8, 2, 512, 8, 512, 8, 64, (8, 8))
    G = Generator(model, RenderingConfig(1.0, 2.4, 1.2, 16, 16, True))
    camera = look_at(torch.tensor([[0.4, 0.5, 1.5]]), focal=1.1)
    with torch.no_grad():
        w = G.mapping(torch.ones(1, 8), camera)
        planes = G.planes(w)
        few, many, ample = (
            peak_bytes(lambda memory=memory: G.view(planes, w, camera, "3d", points_within(memory)))
            for memory in (64 * 2**20, 192 * 2**20, 2**30)
        )
    assert 2**25 < few <= 64 * 2**20 < many <= 192 * 2**20 < ample
