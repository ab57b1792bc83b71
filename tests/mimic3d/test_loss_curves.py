"""A refactoring leaves the trainings' loss curves as they are."""

import pytest
from loss_curves import CASES, loss_curve, pinned

# Float32 sums round differently from one processor to the next, and a training amplifies that a little.
RELATIVE, ABSOLUTE = 2e-3, 2e-4


@pytest.mark.parametrize("case", CASES)
def test_the_loss_curve_is_the_pinned_one(case: str) -> None:
    expected, found = pinned()[case], loss_curve(CASES[case])
    assert found.keys() == expected.keys()
    for at, scalars in expected.items():
        assert found[at] == pytest.approx(scalars, rel=RELATIVE, abs=ABSOLUTE), f"{case} at {at} images"
