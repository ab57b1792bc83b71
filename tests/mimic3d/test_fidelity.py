"""Metrics of fidelity equal torch-fidelity's, and their intervals hold what another sample gives."""

from pathlib import Path

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from mimic3d.evaluation.fidelity import (
    Authenticity,
    ClipKernelDistance,
    Coverage,
    Density,
    FrechetDistance,
    KernelDistance,
    OtherCameraFrechetDistance,
    Precision,
    Recall,
)
from mimic3d.evaluation.frechet import FeatureStatistics, frechet_distance
from mimic3d.evaluation.metric import FeatureSets
from mimic3d.evaluation.registry import FIDELITY, METRICS, table
from mimic3d.features.vision_transformer import ClipFeatures

torch.set_num_threads(1)


def sets(reals: torch.Tensor, generated: torch.Tensor, extractor: str = "inception2015") -> FeatureSets:
    return FeatureSets(extractor, reals, FeatureStatistics.of([reals], reals.shape[1]), generated)


def normal(count: int, seed: int, shift: float = 0.0, scale: float = 1.0, dim: int = 16) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift


@pytest.fixture(scope="module")
def inception() -> FeatureSets:
    """Features of an Inception with random weights, of images of noise and of squares."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from mimic3d.features.convolutional import InceptionFeatures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        extractor = InceptionFeatures({})
    source = torch.Generator().manual_seed(0)
    reals = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=source)
    squares = torch.randint(256, (20, 3, 4, 4), dtype=torch.uint8, generator=source)
    generated = torch.nn.functional.interpolate(squares, scale_factor=8)
    # Theirs takes minutes for the eigenvalues of 2048 dimensions.
    return sets(extractor(reals)[:, :64], extractor(generated)[:, :64])


def test_fid_kid_precision_and_recall_are_torch_fidelitys(inception: FeatureSets) -> None:
    reals, generated = inception.reals, inception.generated
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(generated), fid_features_to_statistics(reals), verbose=False
    )["frechet_inception_distance"]
    assert FrechetDistance().estimate(inception).value == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    kid = kid_features_to_metric(generated, reals, kid_subsets=1, kid_subset_size=len(reals), verbose=False)[
        "kernel_inception_distance_mean"
    ]
    assert KernelDistance().estimate(inception).value == pytest.approx(kid, rel=1e-3, abs=1e-3)
    prc = prc_features_to_metric(generated, reals, prc_neighborhood=3, prc_batch_size=50, verbose=False)
    assert Precision().estimate(inception).value == pytest.approx(prc["precision"])
    assert Recall().estimate(inception).value == pytest.approx(prc["recall"])


def test_a_distance_of_few_images_is_that_of_their_covariance() -> None:
    features = sets(normal(100, 0, dim=40), normal(30, 1, 0.5, dim=40))
    generated = FeatureStatistics.of([features.generated], 40)
    expected = frechet_distance(features.real_statistics, generated)
    assert FrechetDistance().estimate(features).value == pytest.approx(expected, rel=1e-6)


def test_precision_and_recall_of_overlapping_sets_are_torch_fidelitys() -> None:
    features = sets(normal(90, 0, dim=12), normal(70, 1, 0.3, 0.8, dim=12))
    theirs = prc_features_to_metric(
        features.generated, features.reals, prc_neighborhood=3, prc_batch_size=50, verbose=False
    )
    assert Precision().estimate(features).value == pytest.approx(theirs["precision"])
    assert Recall().estimate(features).value == pytest.approx(theirs["recall"])


def test_collapse_costs_recall_and_coverage_and_outliers_precision_and_density() -> None:
    reals = torch.rand(60, 3, generator=torch.Generator().manual_seed(1))
    same, far = sets(reals, reals), sets(reals, reals + 100)
    for metric in (Precision(), Recall(), Coverage()):
        assert metric.estimate(same).value == 1 and metric.estimate(far).value == 0
    # Each of 60 points lies in its own ball and, on average, in those of its 5 nearest neighbours.
    assert Density().estimate(same).value == pytest.approx(1.2) and Density().estimate(far).value == 0
    collapsed = sets(reals, reals[:1] + torch.linspace(0, 1e-3, 20)[:, None])
    assert Precision().estimate(collapsed).value == 1
    assert Recall().estimate(collapsed).value < 0.2 and Coverage().estimate(collapsed).value < 0.2
    with pytest.raises(ValueError, match="more than 3 images"):
        Recall().estimate(sets(reals, reals[:3]))


@pytest.mark.parametrize("metric", [FrechetDistance(), KernelDistance(), Precision(), Density(), Coverage()])
def test_two_seeds_agree_within_the_interval(metric) -> None:
    reals = normal(400, 0)
    one, other = (metric.estimate(sets(reals, normal(300, seed, 0.5, 0.9))) for seed in (1, 2))
    assert (one.low < one.value < one.high and one.samples == 300) or metric.kind == "coverage"
    assert one.low <= other.high and other.low <= one.high
    worse = metric.estimate(sets(reals, normal(300, 3, 2.5, 0.9)))
    better, bad = (one, worse) if metric.direction == "down" else (worse, one)
    assert better.high < bad.low


def test_authenticity_falls_with_the_share_of_copies() -> None:
    reals = normal(400, 0)
    others = Authenticity().estimate(sets(reals, normal(400, 1))).value
    assert 0.5 < others < 0.85
    assert Authenticity().estimate(sets(reals, reals + 1e-4)).value == 0
    mixed = torch.cat([reals[:200] + 1e-4, normal(200, 1)])
    assert Authenticity().estimate(sets(reals, mixed)).value == pytest.approx(others / 2, abs=0.06)


def test_too_few_images_are_said_beside_the_number() -> None:
    few = FrechetDistance().estimate(sets(normal(300, 0, dim=64), normal(40, 1, dim=64)))
    many = FrechetDistance().estimate(sets(normal(300, 0, dim=64), normal(400, 1, dim=64)))
    assert few.note == "40 images for 64 dimensions: biased upwards" and few.value > many.value
    assert many.note == ""


def test_names_have_the_extractor_and_only_the_inception_of_2015_gives_fid_and_kid() -> None:
    names = [metric.name("inception2015") for metric in FIDELITY]
    assert names[:3] == ["fid_inception2015", "fid3d_inception2015", "kid_inception2015"]
    names = [metric.name("mobilenetv2") for metric in FIDELITY if metric.extractor is None]
    assert names[:4] == ["fd_mobilenetv2", "fd3d_mobilenetv2", "kd_mobilenetv2", "precision_mobilenetv2"]
    [cmmd] = [metric for metric in FIDELITY if metric.extractor is not None]
    assert cmmd.extractor == ClipFeatures.name and cmmd.name(ClipFeatures.name) == "cmmd_clipvitl14"
    with pytest.raises(ValueError, match="another camera"):
        OtherCameraFrechetDistance().estimate(sets(normal(40, 0), normal(40, 1)))


def test_cmmd_is_its_definition_and_small_for_images_of_one_distribution() -> None:
    reals, generated = normal(50, 0, dim=8), normal(40, 1, dim=8) + 0.5

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        return torch.exp(-torch.cdist(a, b).square() / (2 * 10**2)).mean()

    a, b = reals.double(), generated.double()
    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    measured = ClipKernelDistance().estimate(sets(reals, generated))
    assert measured.value == pytest.approx(float(expected), rel=1e-6)
    same = ClipKernelDistance().estimate(sets(reals, normal(40, 2, dim=8)))
    assert 0 <= same.value < measured.low


def test_the_table_has_every_metric_with_its_arrow() -> None:
    lines = table().splitlines()[2:]
    assert len(lines) == len(METRICS)
    assert all(("↑" in line) != ("↓" in line) for line in lines)
    page = Path(__file__).parents[2] / "docs" / "evaluation.md"
    assert table() in page.read_text(encoding="utf-8"), "python -m mimic3d.evaluation.registry prints it"
