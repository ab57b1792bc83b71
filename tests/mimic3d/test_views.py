"""Metrics of consistency on views of a textured sphere that is traced by hand, and on damaged ones."""

import math
from dataclasses import replace

import pytest
import torch

from mimic3d.cameras import look_at, on_sphere, pixel_grid, rays
from mimic3d.evaluation.detail import bands, gaussian_blur
from mimic3d.evaluation.fitted_field import FieldDetail, FieldPsnr, FieldsAgreement, FieldsDepth, first_half
from mimic3d.evaluation.geometry import FieldDepth, FieldNormals, Floaters, SilhouetteOverlap, normals
from mimic3d.evaluation.metric import ViewMetric, Views
from mimic3d.evaluation.views import (
    ImitationDetail,
    ImitationPsnr,
    StripCoherence,
    WarpDetail,
    WarpLpips,
    WarpPsnr,
    WarpShare,
    WarpSsim,
    neighbours,
)

torch.set_num_threads(1)
SIDE, COUNT = 32, 9


@pytest.fixture(scope="module")
def sphere() -> Views:
    """Views of a sphere whose colour varies with the place, from an orbit of ±0.4 rad."""
    yaw = torch.linspace(-0.4, 0.4, COUNT, dtype=torch.float64)
    cameras = look_at(on_sphere(yaw, torch.full_like(yaw, 0.3), 1.7), focal=1.4)
    origins, directions = rays(cameras, pixel_grid(SIDE))
    middle = -(origins * directions).sum(-1)
    closest = (origins + middle[..., None] * directions).square().sum(-1)
    hit = closest < 0.4**2
    depth = torch.where(hit, middle - (0.4**2 - closest).clamp(min=0).sqrt(), 0)
    points = origins + depth[..., None] * directions
    colour = torch.sin(points * torch.tensor([17.0, 23.0, 19.0]) + points.roll(1, -1) * 11)
    images = torch.where(hit[..., None], colour, torch.ones(3))
    square = (COUNT, -1, SIDE, SIDE)
    opacity = hit.float().view(square)
    return Views(
        images.transpose(1, 2).reshape(square), cameras, 1.0, depth.view(square), opacity, orbit=True
    )


def changed(views: Views, images: torch.Tensor) -> Views:
    return Views(images, views.cameras, views.box, views.depth, views.opacity, views.orbit)


def noisy(views: Views, strength: float) -> Views:
    noise = torch.randn(views.images.shape, generator=torch.Generator().manual_seed(0))
    return changed(views, views.images + strength * noise)


def value(metric: ViewMetric, views: Views) -> float:
    return metric.value(torch.tensor(metric.part(views), dtype=torch.float64))


def test_views_are_compared_with_those_about_a_fifth_of_a_radian_away(sphere: Views) -> None:
    assert list(neighbours(sphere))[:3] == [(0, 2), (1, 3), (2, 0)] and len(list(neighbours(sphere))) == COUNT
    assert not list(neighbours(changed_cameras(sphere, sphere.cameras[:1].expand(COUNT, -1))))


def changed_cameras(views: Views, cameras: torch.Tensor) -> Views:
    return Views(views.images, cameras, views.box, views.depth, views.opacity, views.orbit)


@pytest.mark.parametrize("metric", [WarpDetail(), WarpPsnr(), WarpSsim(), StripCoherence()])
def test_noise_lowers_agreement_monotonically(metric: ViewMetric, sphere: Views) -> None:
    found = [value(metric, noisy(sphere, strength)) for strength in (0, 0.1, 0.3, 1)]
    assert found == sorted(found, reverse=True) and found[0] > found[-1] * 1.3


def test_a_perceptual_distance_is_the_mean_over_pairs_of_what_can_be_compared(sphere: Views) -> None:
    def squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).square().mean(dim=(1, 2, 3))

    found = []
    for strength in (0, 0.1, 0.3, 1):
        views = replace(noisy(sphere, strength), perceptual=squares)
        found.append(value(WarpLpips(), views))
        # The same pixels as PSNR's, though over the whole image.
        error = 4 / 10 ** (value(WarpPsnr(), views) / 10)
        assert 0 < found[-1] < error
    assert found == sorted(found) and found[-1] > 10 * found[0]
    still = changed_cameras(sphere, sphere.cameras[:1].expand(COUNT, -1))
    assert math.isnan(value(WarpLpips(), replace(still, perceptual=squares)))


def test_blur_raises_psnr_but_not_the_agreement_of_detail(sphere: Views) -> None:
    blurred = [changed(sphere, gaussian_blur(sphere.images, sigma)) for sigma in (0, 1, 2, 4)]
    found = [value(WarpDetail(), views) for views in blurred]
    assert found == sorted(found, reverse=True) and found[0] > 0.8
    flat = changed(sphere, torch.full_like(sphere.images, 0.5))
    assert value(WarpPsnr(), flat) > value(WarpPsnr(), sphere) + 10
    assert value(WarpDetail(), flat) == pytest.approx(0, abs=1e-3)


def test_true_depth_is_contradicted_by_few_pixels_and_wrong_depth_by_many(sphere: Views) -> None:
    assert value(WarpShare(), sphere) > 0.8
    assert sphere.depth is not None
    moved = sphere.depth + torch.linspace(0, 0.5, COUNT).view(-1, 1, 1, 1)
    wrong = Views(sphere.images, sphere.cameras, 1.0, moved, sphere.opacity)
    assert value(WarpShare(), wrong) < 0.2


def test_a_branch_that_imitates_exactly_has_the_highest_scores(sphere: Views) -> None:
    same = Views(sphere.images, sphere.cameras, 1.0, imitated=sphere.images)
    blurred = Views(sphere.images, sphere.cameras, 1.0, imitated=gaussian_blur(sphere.images, 1.5))
    assert value(ImitationPsnr(), same) == pytest.approx(20 * math.log10(2 / (2 / 255)) + 10 * math.log10(12))
    assert value(ImitationDetail(), same) > 0.95 > value(ImitationDetail(), blurred)
    assert value(ImitationPsnr(), blurred) < value(ImitationPsnr(), same)


def test_bands_add_up_to_what_is_above_the_coarsest_blur(sphere: Views) -> None:
    total = sum(bands(sphere.images).chunk(3, dim=1))
    expected = sphere.images - gaussian_blur(sphere.images, 2.4)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-5)


def test_the_interval_resamples_objects_and_too_few_are_said(sphere: Views) -> None:
    metric = WarpDetail()
    parts = torch.tensor([metric.part(noisy(sphere, 0.05 * k)) for k in range(6)], dtype=torch.float64)
    estimate = metric.estimate(parts, seed=0)
    assert estimate == metric.estimate(parts, seed=0)
    assert estimate.low < estimate.value < estimate.high and estimate.note == "of 6 objects only"
    with pytest.raises(ValueError, match="too few views"):
        metric.estimate(torch.zeros(3, 9, dtype=torch.float64), seed=0)


def test_a_difference_of_branches_is_of_the_same_objects(sphere: Views) -> None:
    metric = WarpDetail()
    # Objects differ much more than the branches do.
    parts, others = (
        torch.tensor([metric.part(noisy(sphere, 0.1 * k + more)) for k in range(6)], dtype=torch.float64)
        for more in (0.0, 0.03)
    )
    better, worse = metric.estimate(parts, seed=0), metric.estimate(others, seed=0)
    found = metric.difference(parts, others, seed=0)
    assert found.value == pytest.approx(better.value - worse.value) and found.samples == 6
    assert worse.high > better.low and 0 < found.low < found.value < found.high
    assert metric.difference(parts, parts, seed=0).value == 0


def test_one_field_explains_consistent_views_and_not_damaged_ones(sphere: Views, monkeypatch) -> None:
    for name, number in {"STEPS": (22, 23), "GRIDS": (12, 20), "RAYS": 768, "SAMPLES": 32}.items():
        monkeypatch.setattr(f"mimic3d.evaluation.fitted_field.{name}", number)
    assert value(FieldPsnr(), sphere) > 15
    assert 0 <= value(FieldsDepth(), sphere) < 0.1
    repeated = changed(sphere, sphere.images[:1].expand(COUNT, -1, -1, -1).contiguous())
    detail = [value(FieldDetail(), views) for views in (sphere, noisy(sphere, 0.5), repeated)]
    assert detail[0] == max(detail) and detail[0] > 0.3


def test_the_views_of_two_fields_are_disjoint_blocks_of_neighbours() -> None:
    assert first_half(12).tolist() == ([True] * 2 + [False] * 2) * 3
    for count in range(3, 70):
        assert abs(2 * int(first_half(count).sum()) - count) <= max(1, round(count / 6))


def test_two_fields_disagree_on_what_drifts_along_the_orbit(sphere: Views, monkeypatch) -> None:
    for name, number in {"STEPS": (22, 43), "GRIDS": (12, 24), "RAYS": 768, "SAMPLES": 32}.items():
        monkeypatch.setattr(f"mimic3d.evaluation.fitted_field.{name}", number)
    share = torch.linspace(0, 1, COUNT).view(-1, 1, 1, 1)
    found = [
        value(metric, changed(sphere, torch.lerp(sphere.images, -sphere.images, share * strength)))
        for metric in (FieldsAgreement(), FieldDetail())
        for strength in (0, 0.5, 1)
    ]
    assert found[:3] == sorted(found[:3], reverse=True) and found[3:] == sorted(found[3:], reverse=True)
    # If single views alternated, both fields would average what drifts, and agree better.
    assert found[0] > found[1] + 0.13


def test_normals_of_a_spheres_depth_point_outwards(sphere: Views) -> None:
    origins, directions = rays(sphere.cameras, pixel_grid(SIDE))
    points = (
        (origins + directions * sphere.depth.flatten(1)[..., None]).transpose(1, 2).view(COUNT, 3, SIDE, SIDE)
    )
    inner = -torch.nn.functional.max_pool2d(-sphere.opacity, 5, 1, 2) > 0.5
    cosine = (normals(sphere.depth, sphere.cameras) * torch.nn.functional.normalize(points, dim=1)).sum(
        1, True
    )
    assert cosine[inner].min() > 0.95


def test_silhouettes_and_floaters(sphere: Views) -> None:
    assert value(SilhouetteOverlap(), sphere) > 0.97 and value(Floaters(), sphere) == 0
    opacity = sphere.opacity.clone()
    opacity[..., :4, :4] = 1
    floating = replace(sphere, opacity=opacity)
    assert value(Floaters(), floating) == pytest.approx(16 * COUNT / float(opacity.sum()))
    assert value(SilhouetteOverlap(), floating) < value(SilhouetteOverlap(), sphere)
    nothing = replace(sphere, opacity=torch.zeros_like(opacity))
    assert math.isnan(value(Floaters(), nothing))


def test_a_depth_that_the_images_contradict_differs_from_the_fields(sphere: Views, monkeypatch) -> None:
    for name, value_ in {"GRIDS": (8, 16), "STEPS": (30, 30), "RAYS": 512, "SAMPLES": 32}.items():
        monkeypatch.setattr(f"mimic3d.evaluation.fitted_field.{name}", value_)
    seen = sphere.opacity > 0.5
    flat = replace(sphere, depth=torch.where(seen, sphere.depth[seen].median(), sphere.depth))
    for metric in (FieldDepth(), FieldNormals()):
        assert value(metric, sphere) < 0.8 * value(metric, flat)
