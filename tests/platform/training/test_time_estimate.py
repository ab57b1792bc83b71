"""The time left of a run counts the speed of stage 2, measurements and grids, and says when it is a guess."""

import pytest

from mimic3d.config import override
from mimic3d.config.recipes import get_recipe
from mimic3d_platform.training.progress import STAGE2_SLOWDOWN, TimeEstimate

# 800 + 3200 images; measured and sampled at the ends of both stages, and every 1600 images.
CONFIG = override(get_recipe("cars-demo"), {"output.metric_kimg": 1.6, "output.sample_kimg": 1.6})


def test_nothing_is_known_before_the_first_steps() -> None:
    assert TimeEstimate(CONFIG).left(0) == (None, False)


def test_in_stage_1_the_speed_of_stage_2_is_a_guess() -> None:
    estimate = TimeEstimate(CONFIG)
    estimate.stepped(1, 100.0)
    assert estimate.left(400) == (pytest.approx(4 + 32 * STAGE2_SLOWDOWN), True)


def test_once_all_is_measured_the_estimate_is_the_sum_of_the_parts() -> None:
    estimate = TimeEstimate(CONFIG)
    for stage, speed in ((1, 100.0), (2, 40.0)):
        estimate.stepped(stage, speed)
    estimate.took("measuring", 30.0)
    estimate.took("samples", 5.0)
    # From 400: 4 s of stage 1, 80 s of stage 2; measured at 800, 1600, 3200 and 4000.
    assert estimate.left(400) == (pytest.approx(4 + 80 + 4 * 35.0), False)
    assert estimate.left(2000) == (pytest.approx(50 + 2 * 35.0), False)


def test_while_the_last_measurement_is_taken_it_is_what_is_left() -> None:
    estimate = TimeEstimate(CONFIG)
    estimate.stepped(2, 40.0)
    estimate.took("measuring", 30.0)
    estimate.took("samples", 0.0)
    assert estimate.left(4000, parts_done=False) == (30.0, False)
    assert estimate.left(4000) == (0.0, False)


def test_a_speed_that_swings_is_averaged() -> None:
    estimate = TimeEstimate(CONFIG)
    estimate.took("measuring", 0.0)
    estimate.took("samples", 0.0)
    for speed in (40.0, 40.0, 10.0):
        estimate.stepped(2, speed)
    seconds, _ = estimate.left(3600)
    assert 10.0 < seconds < 40.0
