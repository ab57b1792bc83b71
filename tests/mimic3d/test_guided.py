"""Rendering by fewer, better-placed samples: around the depth that the coarse tri-plane gives."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from mimic3d.cameras import look_at
from mimic3d.config import Config, ConfigError, ModelConfig, RenderingConfig, override
from mimic3d.config.recipes import get_recipe
from mimic3d.networks.generator import Generator
from mimic3d.rendering.guided import depth_interval, interval_at, interval_depths
from mimic3d.rendering.volume import composite

torch.set_num_threads(1)

MODEL = ModelConfig(32, 16, 8, 8, 8, 2, 64, 8, 64, 8, 16, (8, 8))
CAMERAS = look_at(torch.tensor([[0.4, 0.5, 1.5], [-1.0, 0.2, 1.2]]), focal=1.1)


class SharpBall(Generator):
    """A hard ball of radius 0.4 with a pattern on it, the same in both branches."""

    def field(self, planes, points: Tensor, outputs: int | None = 3) -> tuple[Tensor, Tensor]:
        density = 3000 * (0.4 - points.norm(dim=-1, keepdim=True))
        count = 32 if outputs is None else outputs
        stripes = (points[..., :1] * 12).sin() / 2 + 0.5
        return density.clamp(-200, 200), stripes.expand(*points.shape[:2], count)


def rendering(**settings) -> RenderingConfig:
    return RenderingConfig(0.9, 2.5, 1.6, **({"white_background": True} | settings))


def rendered(settings: RenderingConfig, **bounds) -> Tensor:
    torch.manual_seed(0)
    generator = SharpBall(MODEL, settings)
    with torch.no_grad():
        w = generator.mapping(torch.zeros(2, 8), CAMERAS)
        return generator.view(generator.planes(w), w, CAMERAS, "3d", **bounds).image


def test_an_interval_has_nearly_all_of_a_rays_weight() -> None:
    depths = torch.linspace(1, 2, 11).view(1, 1, 11, 1).expand(1, 2, -1, -1)
    density = torch.full((1, 2, 11, 1), -200.0)
    density[0, 0, 4:7] = 500  # a wall from 1.4 to 1.6; nothing is in the way of the second ray
    near, far = depth_interval(composite(density, torch.zeros(1, 2, 11, 0), depths, True)).unbind(-1)
    assert near[0, 0] == pytest.approx(1.3) and far[0, 0] == pytest.approx(1.4), "the wall's front"
    assert near[0, 1].isnan() and far[0, 1].isnan()


def test_a_ray_between_others_has_the_union_of_their_intervals() -> None:
    intervals = torch.ones(1, 2, 8, 8)
    intervals[:, 1] = 1.1
    intervals[:, :, :, 3:5] = torch.tensor([2.0, 2.1]).view(1, 2, 1, 1)
    intervals[:, :, :, 5:] = math.nan
    uv = torch.tensor([[0.05, 0.5], [0.5 - 1 / 16, 0.5], [0.5 + 3 / 16, 0.5], [0.95, 0.5]])
    near, far = interval_at(intervals, uv, empty=3.0)[0].unbind(-1)
    assert near.tolist() == pytest.approx([1, 0.9, 2, 3])
    assert far.tolist() == pytest.approx([1.1, 2.2, 2.1, 3])


def test_depths_divide_their_interval() -> None:
    interval = torch.tensor([[[1.0, 2.0], [3.0, 3.0]]])
    middle = interval_depths(interval, torch.full((1, 2, 4, 1), 0.5))
    assert middle[0, :, :, 0].tolist() == [[1.125, 1.375, 1.625, 1.875], [3, 3, 3, 3]]
    random = interval_depths(interval, torch.rand(1, 2, 4, 1))[0, 0, :, 0]
    assert (random.diff() > 0).all() and ((random - 1) * 4).floor().tolist() == [0, 1, 2, 3]


def test_few_guided_samples_are_closer_than_two_passes_of_as_many() -> None:
    many = rendered(rendering(coarse_samples=96, importance_samples=96))

    def psnr(settings: RenderingConfig) -> float:
        return -10 * math.log10(((rendered(settings) - many) / 2).square().mean().item())

    for samples in (8, 12):
        two_pass = psnr(rendering(coarse_samples=samples // 2, importance_samples=samples // 2))
        guided = psnr(rendering(coarse_samples=32, importance_samples=32, guided_samples=samples))
        assert guided > two_pass + 5


def test_the_image_does_not_depend_on_the_chunk_size() -> None:
    settings = rendering(coarse_samples=8, importance_samples=8, guided_samples=4)
    assert torch.allclose(rendered(settings), rendered(settings, max_points=500), atol=1e-6)


def test_guided_samples_have_gradients_in_both_planes() -> None:
    torch.manual_seed(0)
    generator = Generator(MODEL, rendering(coarse_samples=6, importance_samples=6, guided_samples=5))
    w = generator.mapping(torch.randn(2, 8), CAMERAS)
    planes = generator.planes(w)
    rays = generator.branch_3d(planes, CAMERAS, torch.rand(2, 30, 2), stochastic=True)
    assert rays.features.shape == (2, 30, 3) and rays.weights.shape == (2, 30, 4, 1)
    gradients = torch.autograd.grad(rays.features.square().sum(), [planes.coarse, planes.detail])
    assert all(g.isfinite().all() and g.any() for g in gradients)


def test_one_guided_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rendering.guided_samples is 1, but must be 0, or at least 4"):
        dataclasses.replace(Config(), rendering=RenderingConfig(guided_samples=1))


def test_guided_samples_need_a_2d_branch() -> None:
    # All samples of a ray that hits nothing are at one depth: its loss has no gradient.
    generator = Generator(MODEL, rendering(guided_samples=8)).requires_grad_()
    with torch.no_grad():
        generator.decoder.net["2"].bias[0] = -100
    planes = generator.planes(generator.mapping(torch.zeros(2, 8), CAMERAS))
    generator.branch_3d(planes, CAMERAS, torch.rand(2, 30, 2), stochastic=True).features.sum().backward()
    assert not generator.decoder.net["2"].bias.grad[0]
    assert get_recipe("cars-demo-patch-gan").rendering.guided_samples == 0
    with pytest.raises(
        ConfigError, match=r"rendering.guided_samples is 8, but must be 0: without the 2D branch"
    ):
        override(get_recipe("cars-demo-patch-gan"), {"rendering.guided_samples": 8})
