"""A refactoring leaves the trainings' loss curves as they are."""

import pytest
from loss_curves import CASES, loss_curve, pinned

# Processors of other vector widths differ by 1e-14 (in float64); adaptive augmentation samples in float32.
RELATIVE, ABSOLUTE = 1e-7, 1e-9


# The two stages take half a minute; `make test` has the shorter curves.
_MARKS = {"two-stages": [pytest.mark.slow]}


@pytest.mark.parametrize("case", [pytest.param(case, marks=_MARKS.get(case, [])) for case in CASES])
def test_the_loss_curve_is_the_pinned_one(case: str) -> None:
    expected, found = pinned()[case], loss_curve(CASES[case])
    assert found.keys() == expected.keys()
    for at, scalars in expected.items():
        assert found[at] == pytest.approx(scalars, rel=RELATIVE, abs=ABSOLUTE), f"{case} at {at} images"
