"""The smallest part of `make bench-fidelity`: the default distance grows with the strength of damage."""

from pathlib import Path

import pytest
import torch

from benchmarks.fidelity import DAMAGES, ORDERED, UNDAMAGED, calibrate, damaged, in_markdown, is_ordered, plot
from benchmarks.metrics import true_views
from coloured_balls import coloured_balls
from mimic3d.features.registry import load_extractor
from mimic3d.rendering.images import to_uint8
from mimic3d_platform.evaluation import feature_weights


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    views = true_views(coloured_balls(4), side=64, count=24)
    return torch.cat([to_uint8(each.images) for each in views])


@pytest.fixture(scope="module")
def found(images: torch.Tensor) -> dict[str, list[float]]:
    network = feature_weights.best_available("frechet")
    extractor = load_extractor(feature_weights.resolve(network), network)
    return calibrate(extractor, images[::2], images[1::2])


@pytest.mark.parametrize("damage", ORDERED)
def test_the_distance_grows_with_the_strength_of_damage(damage: str, found: dict[str, list[float]]) -> None:
    assert is_ordered(found, damage), found[damage]
    assert found[damage][-1] > 2 * found[UNDAMAGED][0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_the_same_at_every_run_and_grows(damage: str, images: torch.Tensor) -> None:
    apply, strengths = DAMAGES[damage]
    found = [damaged(images, apply, strength) for strength in strengths]
    assert torch.equal(found[0], damaged(images, apply, strengths[0])) and found[0].dtype == torch.uint8
    errors = [float((each.float() - images.float()).abs().mean()) for each in found]
    assert errors[0] > 0 and errors == sorted(errors)


def test_the_table_and_the_plot_have_every_damage(found: dict[str, list[float]], tmp_path: Path) -> None:
    table = in_markdown({"a": found, "b": found})
    assert all(f"| {name} |" in table for name in DAMAGES) and table.count("\n") == 4 + len(DAMAGES)
    plot({"a": found}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
