"""Decides which client is drawn next: by its newest settings, coarse at once, then sharp when it rests."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from mimic3d_platform.viewer.drawing import Picture
from mimic3d_platform.viewer.view_settings import ViewSettings

# A client that has not changed its settings for this long, in seconds, rests.
REST_S = 0.15

_LOG = logging.getLogger(__name__)

Steps = Generator[None, None, Picture]


class Draw(Protocol):
    """Begins to draw a picture; see `DrawingSession.draw`."""

    def __call__(self, settings: ViewSettings, *, coarse: bool = False) -> Steps: ...


class Receiver(Protocol):
    """The receiver of a client's pictures."""

    def show(self, picture: Picture, waited: float) -> None:
        """Shows a picture, `waited` seconds after its settings were asked for."""

    def fail(self, error: Exception) -> None:
        """Says that the newest settings could not be drawn."""


@dataclass
class _Client:
    receiver: Receiver
    settings: ViewSettings
    asked: float
    coarse_due: bool = True
    sharp_due: bool = True
    served: float = 0.0


class Scheduler:
    """The newest settings of each client, drawn one at a time.

    A client has one place, which newer settings take over: nothing waits behind a picture that nobody wants
    any more. Coarse pictures come first, of the client that has waited longest; a sharp picture is
    interrupted for them between its steps and continued afterwards, or dropped if its own client has moved.
    """

    def __init__(self, draw: Draw, clock: Callable[[], float] = time.monotonic) -> None:
        self._draw, self._clock = draw, clock
        self._clients: dict[int, _Client] = {}
        self._changed = threading.Condition()
        self._sharp: tuple[int, _Client, ViewSettings, Steps] | None = None
        self._ended = False

    def submit(self, client: int, settings: ViewSettings, receiver: Receiver, *, force: bool = False) -> None:
        """Replaces what a client wants to see; settings that it has already asked for change nothing.

        Args:
            force: draws them anew, because the model has changed.
        """
        with self._changed:
            before = self._clients.get(client)
            if before is not None and before.settings == settings and not force:
                return
            served = before.served if before else 0.0
            self._clients[client] = _Client(receiver, settings, self._clock(), served=served)
            self._changed.notify()

    def remove(self, client: int) -> None:
        """Forgets a client that is gone."""
        with self._changed:
            self._clients.pop(client, None)
            self._changed.notify()

    def run(self) -> None:
        """Draws until `end`: the body of the drawing thread."""
        while True:
            wait = self.step()
            with self._changed:
                if self._ended:
                    return
                if wait != 0:
                    self._changed.wait(self._until_due())

    def end(self) -> None:
        """Ends `run` after its present step."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def step(self) -> float | None:
        """Draws a coarse picture, or a step of a sharp one.

        Returns:
            0 if it did, else the seconds until something is due; None if nothing will be.
        """
        with self._changed:
            self._drop_stale()
            waiting = [(each.served, number) for number, each in self._clients.items() if each.coarse_due]
            number = min(waiting)[1] if waiting else None
            coarse = self._clients[number] if number is not None else None
            if coarse is not None:
                coarse.coarse_due, coarse.served = False, self._clock()
            elif self._sharp is None and not self._begin_sharp():
                return self._until_due()
        if coarse is not None and number is not None:
            self._advance(number, coarse, self._draw(coarse.settings, coarse=True), to_end=True)
        elif self._sharp is not None:
            number, client, _, steps = self._sharp
            if self._advance(number, client, steps):
                self._sharp = None
        return 0

    def _drop_stale(self) -> None:
        """Closes the sharp picture that its client does not want any more."""
        if self._sharp is not None and self._clients.get(self._sharp[0]) is not self._sharp[1]:
            self._sharp[3].close()
            self._sharp = None

    def _begin_sharp(self) -> bool:
        now = self._clock()
        resting = [
            (each.served, number)
            for number, each in self._clients.items()
            if each.sharp_due and each.asked + REST_S - now <= 0
        ]
        if not resting:
            return False
        number = min(resting)[1]
        client = self._clients[number]
        client.sharp_due = False
        self._sharp = (number, client, client.settings, self._draw(client.settings))
        return True

    def _until_due(self) -> float | None:
        """Seconds until a client rests and is due a sharp picture; None if none is."""
        if any(each.coarse_due for each in self._clients.values()):
            return 0.0
        now = self._clock()
        times = [each.asked + REST_S - now for each in self._clients.values() if each.sharp_due]
        return max(0.0, min(times)) if times else None

    def _advance(self, number: int, client: _Client, steps: Steps, *, to_end: bool = False) -> bool:
        """Draws one step, or all; shows the picture that is finished. Whether there is nothing left to do."""
        try:
            while True:
                next(steps)
                if not to_end:
                    return False
        except StopIteration as done:
            self._show(number, client, done.value)
        except Exception as error:  # Out of memory, say: the viewer lives on, with other settings.
            client.sharp_due = False
            with contextlib.suppress(Exception):
                client.receiver.fail(error)
        return True

    def _show(self, number: int, client: _Client, picture: Picture) -> None:
        try:
            client.receiver.show(picture, self._clock() - client.asked)
        except Exception:
            # Its page may just have gone; the other clients' pages are drawn on.
            _LOG.warning("a picture could not be sent to client %d", number, exc_info=True)
            with self._changed:
                if self._clients.get(number) is client:
                    del self._clients[number]
