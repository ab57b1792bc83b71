"""The scheduler: newest settings win, coarse before sharp, all clients are served."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import pytest

from mimic3d_platform.viewer.drawing import Picture
from mimic3d_platform.viewer.scheduler import REST_S, Scheduler
from mimic3d_platform.viewer.view_settings import Identity, ViewSettings

SHARP_STEPS = 3


def wanted(seed: int) -> ViewSettings:
    return ViewSettings(Identity(seed, ()), (), 8, 8)


@dataclass
class Studio:
    """A scheduler on a clock that the test turns, and a log of what it draws and shows."""

    now: float = 0.0
    log: list[str] = field(default_factory=list)
    fails: bool = False

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.draw, clock=lambda: self.now)

    def draw(self, settings: ViewSettings, *, coarse: bool = False) -> Generator[None, None, Picture]:
        name = f"{'coarse' if coarse else 'sharp'} {settings.identity.seed}"
        try:
            for _ in range(1 if coarse else SHARP_STEPS):
                self.log.append(f"draw {name}")
                if self.fails:
                    raise RuntimeError("no memory")
                yield
        except GeneratorExit:
            self.log.append(f"drop {name}")
            raise
        return Picture(np.zeros((8, 8, 3), np.uint8), (), settings, 8, 8, coarse, 0.0)

    def ask(self, client: int, seed: int, **options: bool) -> None:
        self.scheduler.submit(client, wanted(seed), Watcher(self, client), **options)

    def steps(self) -> list[str]:
        """What one more step after another adds to the log, until there is nothing due."""
        self.log.clear()
        while self.scheduler.step() == 0:
            pass
        return list(self.log)


@dataclass
class Watcher:
    studio: Studio
    client: int

    def show(self, picture: Picture, waited: float) -> None:
        quality = "coarse" if picture.coarse else "sharp"
        self.studio.log.append(f"{self.client} sees {quality} {picture.settings.identity.seed}")

    def fail(self, error: Exception) -> None:
        self.studio.log.append(f"{self.client} hears {error}")


@pytest.fixture
def studio() -> Studio:
    return Studio()


def test_a_picture_is_coarse_at_once_and_sharp_at_rest(studio: Studio) -> None:
    studio.ask(1, seed=5)
    assert studio.steps() == ["draw coarse 5", "1 sees coarse 5"]
    assert studio.scheduler.step() == pytest.approx(REST_S)
    studio.now += REST_S
    assert studio.steps() == ["draw sharp 5"] * SHARP_STEPS + ["1 sees sharp 5"]
    assert studio.scheduler.step() is None


def test_nothing_is_drawn_that_newer_settings_have_replaced(studio: Studio) -> None:
    for seed in range(20):
        studio.ask(1, seed)
    assert studio.steps() == ["draw coarse 19", "1 sees coarse 19"]


def test_a_client_that_moves_drops_its_sharp_picture(studio: Studio) -> None:
    studio.ask(1, seed=1)
    studio.steps()
    studio.now += REST_S
    studio.scheduler.step()
    studio.ask(1, seed=2)
    assert studio.steps() == ["drop sharp 1", "draw coarse 2", "1 sees coarse 2"]


def test_a_sharp_picture_waits_for_another_clients_coarse_one_and_goes_on(studio: Studio) -> None:
    studio.ask(1, seed=1)
    studio.steps()
    studio.now += REST_S
    studio.scheduler.step()
    studio.ask(2, seed=9)
    assert studio.steps() == [
        "draw coarse 9",
        "2 sees coarse 9",
        *["draw sharp 1"] * (SHARP_STEPS - 1),
        "1 sees sharp 1",
    ]


def test_clients_take_turns(studio: Studio) -> None:
    seen = []
    for turn in range(1, 4):
        studio.now += 0.01
        studio.ask(1, turn)
        studio.ask(2, turn)
        studio.scheduler.step()
        seen += [line for line in studio.log if "sees" in line]
        studio.log.clear()
    assert [line[0] for line in seen] == ["1", "2", "1"]


def test_equal_settings_are_drawn_once_unless_the_model_has_changed(studio: Studio) -> None:
    studio.ask(1, seed=1)
    studio.steps()
    studio.ask(1, seed=1)
    assert studio.steps() == []
    studio.ask(1, seed=1, force=True)
    assert studio.steps() == ["draw coarse 1", "1 sees coarse 1"]


def test_a_client_that_has_gone_is_not_drawn_for(studio: Studio) -> None:
    studio.ask(1, seed=1)
    studio.scheduler.remove(1)
    assert studio.steps() == [] and studio.scheduler.step() is None


def test_a_picture_that_fails_is_reported_once_and_others_are_drawn(studio: Studio) -> None:
    studio.fails = True
    studio.ask(1, seed=1)
    assert studio.steps() == ["draw coarse 1", "1 hears no memory"]
    studio.now += REST_S
    assert studio.steps() == []
    studio.fails = False
    studio.ask(1, seed=2)
    assert studio.steps() == ["draw coarse 2", "1 sees coarse 2"]


def test_the_drawing_thread_wakes_for_settings_and_ends() -> None:
    studio = Studio()
    scheduler = Scheduler(studio.draw)
    sharp = threading.Event()

    class Waiting(Watcher):
        def show(self, picture: Picture, waited: float) -> None:
            if not picture.coarse:
                sharp.set()

    thread = threading.Thread(target=scheduler.run)
    thread.start()
    scheduler.submit(1, wanted(1), Waiting(studio, 1))
    assert sharp.wait(10)
    scheduler.end()
    thread.join(10)
    assert not thread.is_alive()
