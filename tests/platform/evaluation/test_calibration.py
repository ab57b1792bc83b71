"""The smallest part of `make bench-metrics`: damage lowers consistency, and blur does not raise it."""

import pytest

from benchmarks.metrics import BLUR, DAMAGES, TRUE, calibrate, in_markdown, metrics_of, plot, true_views
from coloured_balls import coloured_balls
from mimic3d.evaluation.metric import ViewMetric, Views

FLOATING = "squares that float"


@pytest.fixture(scope="module")
def objects() -> list[Views]:
    return true_views(coloured_balls(2), side=48, count=9)


@pytest.fixture(scope="module")
def metrics(objects: list[Views]) -> list[ViewMetric]:
    return metrics_of(objects[0], network=None, fields=False)


@pytest.fixture(scope="module")
def found(objects: list[Views], metrics: list[ViewMetric]) -> dict[str, dict[str, list[float]]]:
    return calibrate(objects, metrics)


def test_metrics_are_near_their_ceiling_on_true_meshes(found: dict[str, dict[str, list[float]]]) -> None:
    assert found[TRUE]["warp_detail"][0] > 0.7 and found[TRUE]["strip_coherence"][0] > 0.6
    assert found[TRUE]["silhouette_iou"][0] > 0.9 and found[TRUE]["floaters"][0] == 0


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in (BLUR, FLOATING)])
def test_agreement_of_detail_falls_with_the_strength_of_every_damage(
    damage: str, found: dict[str, dict[str, list[float]]]
) -> None:
    values = [*found[TRUE]["warp_detail"], *found[damage]["warp_detail"]]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 0.02


def test_what_floats_is_found(found: dict[str, dict[str, list[float]]]) -> None:
    values = [*found[TRUE]["floaters"], *found[FLOATING]["floaters"]]
    assert values == sorted(values) and values[-1] > 0.02


def test_blur_does_not_raise_the_agreement_of_detail(found: dict[str, dict[str, list[float]]]) -> None:
    values = [*found[TRUE]["warp_detail"], *found[BLUR]["warp_detail"]]
    assert max(values) < values[0] + 0.01 and values[-1] < values[0] - 0.1


def test_the_table_and_the_plot_have_every_metric(found, metrics: list[ViewMetric], tmp_path) -> None:
    assert in_markdown(found, metrics).count("\n") == 2 + len(metrics) > 8
    plot(found, metrics, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
