"""A training that diverges is reported once, in a sentence that says what to change."""

import math

from mimic3d_platform.training.divergence import Divergence, DivergenceDetector

FINE = {
    "loss/generator_2d": 0.9,
    "loss/discriminator_2d": 1.2,
    "logits/fake_2d": -0.3,
    "gradient/generator": 2.0,
}


def found(lines: list[dict[str, float]]) -> list[tuple[int, Divergence]]:
    """The divergences that a detector reports for a run, with the number of the line."""
    detector = DivergenceDetector()
    said = [(index, detector.check(index * 8, line)) for index, line in enumerate(lines)]
    return [(index, divergence) for index, divergence in said if divergence is not None]


def test_a_sound_run_has_no_divergence() -> None:
    falling = [FINE | {"loss/imitation": 0.6 * 0.97**index} for index in range(100)]
    assert found([FINE] * 50 + falling) == []


def test_values_that_stay_not_finite_end_the_run() -> None:
    odd = FINE | {"gradient/generator": math.nan}
    assert found([FINE, odd, FINE, odd, FINE, odd]) == []  # The step mends single ones.
    [(line, divergence)] = found([FINE, odd, odd, odd, odd])
    assert line == 3 and divergence.ends_run and divergence.kind == "not finite"
    assert "gradient/generator is nan at 24 images" in divergence.explanation
    assert "optimizer.generator_lr" in divergence.explanation


def test_losses_that_explode_end_the_run() -> None:
    [(line, divergence)] = found([FINE, *[FINE | {"loss/generator_2d": 5e4}] * 3])
    assert line == 3 and divergence.ends_run and "loss/generator_2d is 5e+04" in divergence.explanation


def test_a_collapsed_discriminator_is_reported_and_the_run_continues() -> None:
    [(line, divergence)] = found([FINE | {"loss/discriminator_2d": 1e-5}] * 60)
    assert line == 19 and not divergence.ends_run and "r1_gamma" in divergence.explanation


def test_imitation_that_does_not_fall_is_reported_and_the_run_continues() -> None:
    [(line, divergence)] = found([FINE] * 30 + [FINE | {"loss/imitation": 0.61}] * 60)
    assert line == 30 + 39 and not divergence.ends_run
    assert divergence.kind == "imitation stuck" and "imitation.lpips_weight" in divergence.explanation
    # Resumed late in stage 2, its first values are those of a loss that has fallen already.
    resumed = DivergenceDetector(imitation=False)
    assert not any(resumed.check(8 * line, FINE | {"loss/imitation": 0.61}) for line in range(90))
