"""Volume rendering, importance sampling, tri-planes and patches against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from mimic3d.cameras import look_at, pixel_grid
from mimic3d.config import ModelConfig, RenderingConfig
from mimic3d.networks.generator import Generator
from mimic3d.rendering.patches import crop, patch_uv, random_corners
from mimic3d.rendering.triplane import PLANE_AXES, sample_triplane
from mimic3d.rendering.volume import composite, importance_depths, stratified_depths

torch.set_num_threads(1)


def evenly(near: float, far: float, count: int) -> torch.Tensor:
    return torch.linspace(near, far, count).view(1, 1, count, 1)


# Depths along a ray.


def test_stratified_depths_are_the_linspace_moved_by_the_jitter() -> None:
    jitter = torch.rand(2, 3, 8, 1, generator=torch.Generator().manual_seed(0))
    depths = stratified_depths(1.0, 2.4, 8, jitter)
    expected = torch.linspace(1.0, 2.4, 8)[:, None] + jitter * 1.4 / 7
    assert torch.allclose(depths, expected)
    assert (depths.diff(dim=2) > 0).all()


def test_uniform_weights_give_evenly_spaced_depths_between_the_outer_knots() -> None:
    depths = evenly(1, 2, 11)  # mid-depths 1.05, 1.15, ... 1.95; the last knot is the second to last of them
    weights = torch.full((1, 1, 10, 1), 0.1)
    found = importance_depths(depths, weights, torch.linspace(0, 1, 9).view(1, 1, 9))
    assert torch.allclose(found.flatten(), torch.linspace(1.05, 1.85, 9), atol=1e-5)


def test_importance_depths_invert_the_cdf_of_the_smoothed_weights() -> None:
    source = torch.Generator().manual_seed(1)
    samples = 12
    depths = torch.rand(samples, generator=source).sort().values + 1
    weights = torch.rand(samples - 1, generator=source) ** 4
    # Literally: maximum of neighbours (padded), mean of neighbours, + 0.01, the ends dropped.
    padded = [-math.inf, *weights.tolist(), -math.inf]
    largest = [max(padded[i], padded[i + 1]) for i in range(samples)]
    smooth = [(largest[i] + largest[i + 1]) / 2 + 0.01 for i in range(samples - 1)]
    mass = torch.tensor(smooth[1:-1]) + 1e-5
    cdf = torch.cat([torch.zeros(1), (mass / mass.sum()).cumsum(0)])
    knots = ((depths[1:] + depths[:-1]) / 2)[: samples - 2]
    assert len(cdf) == len(knots) == samples - 2
    quantiles = torch.rand(200, generator=source)
    found = importance_depths(depths.view(1, 1, -1, 1), weights.view(1, 1, -1, 1), quantiles.view(1, 1, -1))
    for u, depth in zip(quantiles.tolist(), found.flatten().tolist(), strict=True):
        k = max(k for k in range(len(cdf)) if cdf[k] <= u)
        share = (u - cdf[k]) / (cdf[k + 1] - cdf[k])
        assert depth == pytest.approx(float(knots[k] + share * (knots[k + 1] - knots[k])), abs=1e-5)


def test_a_spike_draws_nearly_all_samples_to_its_neighbourhood() -> None:
    depths, weights = evenly(0, 1, 41), torch.zeros(1, 1, 40, 1)
    weights[0, 0, 20] = 1
    found = importance_depths(depths, weights, torch.linspace(0, 1, 1000).view(1, 1, -1))
    # Smoothing spreads the unit to 0.5, 1, 0.5 on segments 19 to 21; all 38 kept weights have + 0.01 besides.
    share = (2 + 3 * 0.01) / (2 + 38 * 0.01)
    near = ((found >= depths[0, 0, 18:20].mean()) & (found <= depths[0, 0, 21:23].mean())).float().mean()
    assert near.item() == pytest.approx(share, abs=0.01)


def test_importance_depths_have_no_gradient_and_stay_in_range_at_the_ends() -> None:
    weights = torch.rand(2, 5, 7, 1, requires_grad=True)
    depths = evenly(1, 2, 8).expand(2, 5, 8, 1)
    found = importance_depths(depths, weights, torch.tensor([0.0, 1.0]).expand(2, 5, 2))
    assert not found.requires_grad
    assert found.min() >= 1 and found.max() <= 2 and found.isfinite().all()


# Compositing.


@pytest.mark.parametrize("density", [-3.0, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("white", [False, True])
def test_a_slab_of_constant_density_absorbs_exponentially(density: float, white: bool) -> None:
    length, colour = 1.5, 0.3
    depths = evenly(1, 1 + length, 9).expand(2, 3, 9, 1)
    seen = composite(
        torch.full_like(depths, density), torch.full((2, 3, 9, 4), colour), depths, white_background=white
    )
    opacity = 1 - math.exp(-math.log1p(math.exp(density - 1)) * length)
    expected = (colour * opacity + (1 - opacity if white else 0)) * 2 - 1
    assert seen.weights.sum(dim=2).allclose(torch.tensor(opacity), atol=1e-5)
    assert seen.features.allclose(torch.tensor(expected), atol=1e-5)


def test_weights_are_transmittance_times_opacity_of_each_segment() -> None:
    source = torch.Generator().manual_seed(2)
    density = torch.randn(1, 1, 6, 1, generator=source) * 3
    depths = torch.rand(1, 1, 6, 1, generator=source).sort(dim=2).values
    features = torch.rand(1, 1, 6, 2, generator=source)
    seen = composite(density, features, depths, white_background=False)
    passed, colour, depth, total = 1.0, torch.zeros(2), 0.0, 0.0
    for k in range(5):
        middle = (density[0, 0, k] + density[0, 0, k + 1]) / 2
        alpha = float(1 - torch.exp(-F.softplus(middle - 1) * (depths[0, 0, k + 1] - depths[0, 0, k])))
        weight = passed * alpha
        assert float(seen.weights[0, 0, k]) == pytest.approx(weight, abs=1e-6)
        colour += weight * (features[0, 0, k] + features[0, 0, k + 1]) / 2
        depth += weight * float(depths[0, 0, k] + depths[0, 0, k + 1]) / 2
        total, passed = total + weight, passed * (1 - alpha + 1e-10)
    assert torch.allclose(seen.features[0, 0], colour * 2 - 1, atol=1e-5)
    assert float(seen.depth) == pytest.approx(depth / total, abs=1e-5)


def test_nothing_hit_is_black_or_white_and_its_depth_is_in_range() -> None:
    depths = evenly(1, 2, 8)
    density, features = torch.full_like(depths, -200), torch.rand(1, 1, 8, 3)
    for white, expected in ((False, -1.0), (True, 1.0)):
        seen = composite(density, features, depths, white_background=white)
        assert seen.features.allclose(torch.tensor(expected), atol=1e-6)
        assert seen.depth.isfinite().all() and 1 <= seen.depth.item() <= 2


def test_an_opaque_wall_hides_what_is_behind_it_and_gradients_stay_finite() -> None:
    depths = evenly(1, 2, 8)
    density = torch.full_like(depths, 1e6).requires_grad_()
    features = torch.linspace(0, 1, 8).view(1, 1, 8, 1).clone().requires_grad_()
    seen = composite(density, features, depths, white_background=True)
    assert float(seen.features.detach()) == pytest.approx(2 * (0 + 1 / 7) / 2 - 1, abs=1e-5)
    (seen.features.sum() + seen.depth.sum()).backward()
    assert density.grad.isfinite().all() and features.grad.isfinite().all()
    assert features.grad.flatten()[2:].abs().max() < 1e-6


# Tri-planes.


def literal_sample(planes: torch.Tensor, points: torch.Tensor, box: float, axes: str) -> torch.Tensor:
    """What grid_sample reads from each plane, averaged."""
    read = []
    for plane, (width, height) in enumerate(PLANE_AXES[axes]):
        grid = (points * 2 / box)[:, None, :, [width, height]]
        read.append(F.grid_sample(planes[:, plane], grid, align_corners=False, padding_mode="zeros")[:, :, 0])
    return torch.stack(read).mean(dim=0).transpose(1, 2)


@pytest.mark.parametrize("axes", PLANE_AXES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gathering_on_a_cpu_is_grid_sample_in_values_and_gradients(axes: str, channels_last: bool) -> None:
    source = torch.Generator().manual_seed(3)
    planes = torch.randn(2, 3, 4, 8, 8, generator=source)
    if channels_last:
        planes = planes.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    points = (torch.rand(2, 300, 3, generator=source) - 0.5) * 1.6  # some of them outside the box
    upstream = torch.randn(2, 300, 4, generator=source)
    ours, theirs = planes.clone().requires_grad_(), planes.clone().requires_grad_()
    found, expected = sample_triplane(ours, points, 1.2, axes), literal_sample(theirs, points, 1.2, axes)
    assert torch.allclose(found, expected, atol=1e-5)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_planes_are_read_in_their_memory_order() -> None:
    # Pixel (row, column) of a 4x4 plane over a box of side 2 has its centre at (-0.75 + 0.5 * index).
    centre = [-0.75, -0.25, 0.25, 0.75]
    x, y, z = 3, 0, 2
    point = torch.tensor([[[centre[x], centre[y], centre[z]]]])
    for axes, places in {
        "mimic3d": [(y, x), (z, y), (x, z)],
        "eg3d": [(y, x), (z, x), (x, z)],
    }.items():
        for plane, (row, column) in enumerate(places):
            planes = torch.zeros(1, 3, 1, 4, 4)
            planes[0, plane, 0, row, column] = 3.0
            assert sample_triplane(planes, point, 2.0, axes).item() == pytest.approx(1.0)


def test_outside_the_box_a_plane_reads_zero() -> None:
    planes = torch.ones(1, 3, 2, 8, 8)
    points = torch.tensor([[[0.0, 0.0, 0.0], [0.9, 0.9, 0.9], [0.0, 0.0, 5.0]]])
    read = sample_triplane(planes, points, 1.0)[0, :, 0]
    # Far along z only the XY plane still sees the point.
    assert read.tolist() == pytest.approx([1.0, 0.0, 1 / 3])


def test_a_nan_point_does_not_affect_other_points() -> None:
    planes = torch.ones(2, 3, 4, 8, 8)
    points = torch.zeros(2, 3, 3)
    points[1, 1] = torch.nan
    points[0, 2] = torch.inf
    read = sample_triplane(planes, points, 1.0)
    assert read[1, 1].isnan().all() and (read[0, 2] == 0).all()
    assert torch.allclose(read[[0, 0, 1, 1], [0, 1, 0, 2]], torch.ones(4, 4))


# Patches.


def test_corners_are_uniform_over_all_whole_pixel_positions() -> None:
    corners = random_corners(4000, 16, 20, torch.Generator().manual_seed(0))
    counts = torch.bincount(corners[:, 0] * 5 + corners[:, 1], minlength=25)
    assert corners.min() == 0 and corners.max() == 4
    assert counts.min() > 100 and counts.max() < 230


def test_a_patch_has_the_pixel_centres_of_the_whole_grid() -> None:
    corners = torch.tensor([[2, 5], [0, 8]])
    grid = pixel_grid(16).view(16, 16, 2).permute(2, 0, 1).expand(2, -1, -1, -1)
    expected = crop(grid, corners, 8).flatten(2).transpose(1, 2)
    assert torch.allclose(patch_uv(corners, 8, 16), expected, atol=1e-7)


def test_a_rendered_patch_is_the_crop_of_the_whole_render() -> None:
    torch.manual_seed(0)
    model = ModelConfig(32, 16, 8, 8, 8, 2, 64, 8, 64, 8, 16, (8, 8))
    generator = Generator(model, RenderingConfig(1.0, 2.4, 1.2, 6, 6, True))
    camera = look_at(torch.tensor([[0.4, 0.5, 1.5], [-1.0, 0.2, 1.2]]), focal=1.1)
    corners = torch.tensor([[3, 11], [16, 0]])
    with torch.no_grad():
        w = generator.mapping(torch.randn(2, 8), camera)
        planes = generator.planes(w)
        whole = generator.view(planes, w, camera, "3d").image
        patch = generator.branch_3d(planes, camera, patch_uv(corners, 16, 32)).features
    assert whole.std() > 1e-4
    patch = patch.transpose(1, 2).unflatten(-1, (16, 16))
    assert torch.allclose(patch, crop(whole, corners, 16), atol=1e-5)
