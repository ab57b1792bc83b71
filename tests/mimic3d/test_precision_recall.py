"""Precision and recall, and images whose generator was told another camera."""

import pytest
import torch
from test_evaluation import G, cameras  # noqa: F401 (fixtures)
from torch_fidelity.metric_prc import prc_features_to_metric

from mimic3d.evaluation.frechet import frechet_name
from mimic3d.evaluation.generated import generated_images
from mimic3d.evaluation.precision_recall import PrecisionRecall, precision_recall

torch.set_num_threads(1)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    source = torch.Generator().manual_seed(0)
    reals = torch.randn(90, 12, generator=source)
    generated = torch.randn(70, 12, generator=source) * 0.8 + 0.3
    expected = prc_features_to_metric(generated, reals, prc_neighborhood=3, prc_batch_size=50, verbose=False)
    found = precision_recall(reals, generated, block=32)
    assert found.precision == pytest.approx(expected["precision"])
    assert found.recall == pytest.approx(expected["recall"])
    assert 0.1 < found.recall != found.precision < 1


def test_collapse_costs_recall_and_outliers_precision() -> None:
    reals = torch.rand(60, 3, generator=torch.Generator().manual_seed(1))
    assert precision_recall(reals, reals) == (1, 1)
    assert precision_recall(reals, reals + 100) == (0, 0)
    collapsed = precision_recall(reals, reals[:1] + torch.linspace(0, 1e-3, 20)[:, None])
    assert collapsed.precision == 1 and collapsed.recall < 0.2
    with pytest.raises(ValueError, match="more than 3 images"):
        precision_recall(reals, reals[:3])


def test_names_have_extractor_and_branch() -> None:
    assert PrecisionRecall(0.5, 0.25).metrics("mobilenetv2", "3d") == {
        "precision_mobilenetv2/3d": 0.5,
        "recall_mobilenetv2/3d": 0.25,
    }
    assert frechet_name("inception2015", "3d", other_camera=True) == "fid3d_inception2015/3d"
    assert frechet_name("mobilenetv2", "2d", other_camera=True) == "fd3d_mobilenetv2/2d"


def test_another_camera_changes_the_object_not_the_view(G, cameras) -> None:  # noqa: F811
    options = {"seed": 3, "branches": ["3d"]}
    (same,), (other,) = (
        generated_images(G, cameras, range(4), other_camera=told, **options) for told in (False, True)
    )
    assert not torch.equal(same["3d"], other["3d"])
    one = cameras[:1]
    (same,), (other,) = (
        generated_images(G, one, range(4), other_camera=told, **options) for told in (False, True)
    )
    assert torch.equal(same["3d"], other["3d"]), "with one camera there is no other"
