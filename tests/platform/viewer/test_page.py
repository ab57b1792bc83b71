"""Clients without a browser: they speak viser's protocol, and see what they asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest
import torch
import viser
from viser import transforms
from websockets.sync.client import ClientConnection, connect

from mimic3d.cameras import split_label
from mimic3d.export.orbits import at_yaw
from mimic3d_platform.models.model_uris import load_generator
from mimic3d_platform.viewer.drawing import Picture
from mimic3d_platform.viewer.model_source import LoadedModel, load_model
from mimic3d_platform.viewer.page import Page, vertical_fov
from mimic3d_platform.viewer.viewer import Viewer

WAIT_S = 120


@pytest.fixture(scope="module")
def viewer() -> Iterator[Viewer]:
    viewer = Viewer(load_model("builtin:cars"))
    yield viewer
    viewer.close()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Page, Picture]]:
    """The pictures that pages have shown since the test began."""
    pictures: list[tuple[Page, Picture]] = []
    show = Page.show

    def noted(self: Page, picture: Picture, waited: float) -> None:
        show(self, picture, waited)
        pictures.append((self, picture))

    monkeypatch.setattr(Page, "show", noted)
    return pictures


class Client:
    """A client that looks at the car from somewhere."""

    def __init__(self, viewer: Viewer) -> None:
        model = load_generator("builtin:cars")[1]
        self._camera, self._fov = model.camera, vertical_fov(model.camera.focal)
        self._socket: ClientConnection = connect(
            viewer.url.replace("http", "ws"), subprotocols=[f"viser-v{viser.__version__}"], max_size=None
        )
        self.received = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for message in self._socket:
            self.received += len(message)

    def look(self, yaw: float, width: int = 80, height: int = 40) -> tuple[float, ...]:
        """Moves the camera; the position that it has now."""
        label = at_yaw(self._camera, torch.tensor([yaw], dtype=torch.float64))[0]
        pose = split_label(label)[0].double().numpy()
        position = tuple(pose[:3, 3].tolist())
        message = {
            "type": "ViewerCameraMessage",
            "wxyz": transforms.SO3.from_matrix(pose[:3, :3]).wxyz.tolist(),
            "position": position,
            "fov": self._fov,
            "near": 0.01,
            "far": 100.0,
            "image_height": height,
            "image_width": width,
            "look_at": [0.0, 0.0, 0.0],
            "up_direction": [0.0, 1.0, 0.0],
        }
        self._socket.send(msgspec.msgpack.encode(message))
        return position

    def close(self) -> None:
        self._socket.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_clients_see_their_own_view_coarse_then_sharp(
    viewer: Viewer, shown: list[tuple[Page, Picture]]
) -> None:
    first, second = Client(viewer), Client(viewer)
    places = [np.array(first.look(0.0)), np.array(second.look(1.5))]
    until(lambda: sum(not picture.coarse for _, picture in shown) == 2)
    pages = {id(page): [p for each, p in shown if each is page] for page, _ in shown}
    assert len(pages) == 2
    for pictures, place in zip(pages.values(), places, strict=True):
        if not np.allclose(pictures[0].settings.camera[3:12:4], place, atol=1e-5):
            place = places[1] if place is places[0] else places[0]
        assert [p.coarse for p in pictures] == [True, False]
        for picture in pictures:
            np.testing.assert_allclose(picture.settings.camera[3:12:4], place, atol=1e-5)
        sharp = pictures[-1].pixels
        assert sharp.shape == (64, 128, 3), "the canvas is twice as wide as high"
        assert sharp[:, :20].min() > 240 and sharp[24:40, 56:72].mean() < 200
    assert first.received > 1000 and second.received > 1000
    # Another model reaches the clients that are there, and no more those that have gone.
    second.close()
    shown.clear()
    until(lambda: viewer.clients == 1)
    generator, config = load_generator("builtin:cars")
    viewer.replace_model(LoadedModel(generator, config, "newer"))
    until(lambda: any(not picture.coarse for _, picture in shown))
    assert len({id(page) for page, _ in shown}) == 1
    first.close()
    until(lambda: viewer.clients == 0)
