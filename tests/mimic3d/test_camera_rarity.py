"""How rare a viewing direction is: the one definition that ingestion and training share."""

import numpy as np
import pytest
import torch

from mimic3d.cameras import look_at, on_sphere
from mimic3d.training.camera_rarity import camera_rarity


def labels(yaw: list[float], pitch: list[float], pivot: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    centre = torch.tensor(pivot)
    positions = on_sphere(torch.tensor(yaw), torch.tensor(pitch), 2.7)
    return look_at(positions + centre, centre).numpy()


def test_sampling_by_rarity_makes_directions_equally_frequent() -> None:
    rarity = camera_rarity(labels([0.1] * 90 + [1.5] * 10, [0.2] * 100))
    assert rarity.mean() == pytest.approx(1)
    assert rarity[:90].sum() == pytest.approx(rarity[90:].sum())
    assert (camera_rarity(labels([0.1] * 90, [0.2] * 90)) == 1).all()


def test_one_camera_apart_from_all_others_counts_at_most_ten_times() -> None:
    rarity = camera_rarity(
        np.concatenate([np.repeat(labels([0.1], [0.2]), 9999, axis=0), labels([2.5], [0.2])])
    )
    assert rarity[-1] / rarity[0] == pytest.approx(10 / (10_000 / (2 * 9999)))


def test_it_depends_on_where_a_camera_looks_and_not_on_where_it_stands() -> None:
    random = np.random.default_rng(0)
    yaw, pitch = random.uniform(-3, 3, 200).tolist(), random.uniform(-1, 1, 200).tolist()
    around_a_pivot = camera_rarity(labels(yaw, pitch, (0.0, 0.1, 0.2)))
    assert np.mean(around_a_pivot == camera_rarity(labels(yaw, pitch))) > 0.95, "but for rounding at edges"


def test_rounding_errors_do_not_split_the_directions_that_are_common() -> None:
    random = np.random.default_rng(0)
    level = labels([0.0] * 100, random.uniform(-1e-5, 1e-5, 100).tolist())
    assert (camera_rarity(level) == 1).all()
    ahead = labels(random.uniform(-1e-5, 1e-5, 100).tolist(), [0.1] * 100)
    assert (camera_rarity(ahead) == 1).all()


def test_bins_have_equal_areas() -> None:
    random = np.random.default_rng(0)
    uniform = labels(
        random.uniform(-3.1415, 3.1415, 40_000).tolist(),
        np.arcsin(random.uniform(-0.999, 0.999, 40_000)).tolist(),
    )
    rarity = camera_rarity(uniform)
    poles = np.abs(uniform[:, 6]) > 0.9
    assert rarity[poles].mean() == pytest.approx(rarity[~poles].mean(), rel=0.05)
