"""Progress in a log file: no part is silent for long, and no estimate says that nothing is left."""

import re
import time

import pytest

from mimic3d_platform import console as module
from mimic3d_platform.console import Console


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are hundredths here."""
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.1)
    monkeypatch.setattr(module, "LASTING_S", 0.02)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [re.sub(r"^\[ *\d+ s\] ", "", line) for line in capsys.readouterr().out.splitlines()]


def test_a_silent_part_is_said_and_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().working("starting the workers"):
        time.sleep(0.45)
    found = lines(capsys)
    assert set(found) == {"starting the workers"} and len(found) >= 2


def test_every_part_that_lasts_has_a_line_and_no_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY_S", 60.0)
    monkeypatch.setattr(module, "LASTING_S", 0.5)  # A busy machine must not make "blinking" last.
    with Console().bar() as show:
        for part in ("reading", "blinking", "writing"):
            show(f"{part}: 1 of 3", 1, 3)
            time.sleep(0.0 if part == "blinking" else 0.8)
        show("writing: 3 of 3", 3, 3)
    found = lines(capsys)
    assert [line.partition(":")[0] for line in found if "3 of 3" not in line] == ["reading", "writing"]
    assert found[-1] == "writing: 3 of 3"


def test_a_count_has_an_estimate_once_its_speed_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("rendering", "images") as advance:
        time.sleep(0.05)  # The start is not a part of the speed.
        advance(0, 100)
        time.sleep(0.1)
        advance(1, 100)
        time.sleep(0.15)
    found = lines(capsys)
    assert found[0] == "rendering: starting"
    estimate = re.fullmatch(r"rendering: 1 of 100 images, (\d+) s left", found[-1])
    assert estimate and 8 <= int(estimate[1]) <= 30


@pytest.mark.parametrize(
    ("seconds", "rough", "text"),
    [
        (None, False, ""),
        (0.4, False, ""),
        (-20.0, True, ""),
        (7.2, False, "7 s left"),
        (127.0, False, "2 min 07 s left"),
        (127.0, True, "about 2 min left"),
        (33.0, True, "about 30 s left"),
        (59.9, True, "about 1 min left"),
        (7300.0, False, "2 h 01 min left"),
    ],
)
def test_the_time_left_in_words(seconds: float | None, rough: bool, text: str) -> None:
    assert module._time_left(seconds, rough) == text


def test_a_passed_estimate_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().bar() as show:
        show("measuring: 4000 of 4000", 4000, 4001, 1.05)
        time.sleep(0.3)
    found = lines(capsys)
    assert "1 s left" in found[0] and found[-1] == "measuring: 4000 of 4000"
