"""The page in headless Chromium: it loads, turns, switches and exports, without the internet."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from mimic3d.config.recipes import get_recipe
from mimic3d.export.camera_files import read_cameras
from mimic3d.export.orbits import at_yaw
from mimic3d_platform.viewer.dataset_views import DatasetView
from mimic3d_platform.viewer.model_source import load_model
from mimic3d_platform.viewer.viewer import FIRST_YAW, Viewer

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

# WebGL by the processor; the sandbox needs rights that containers do not have.
FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox"]
WAIT_S = 120


@dataclass
class Window:
    """A browser window with the page, what its console said, and where it asked beyond the server."""

    page: sync_api.Page
    url: str
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page = self.page
        page.set_default_timeout(WAIT_S * 1000)
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._note)
        page.goto(self.url)
        # Viser warns of WebGL without a GPU, in front of the picture.
        page.locator(".mantine-Notification-closeButton").first.click()

    def _note(self, request: sync_api.Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.outside.append(request.url)

    def picture(self) -> np.ndarray:
        """(300, 300, 3): the middle of the canvas, where the model's picture is."""
        image = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        box = self.page.locator("canvas").first.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        return np.asarray(image.crop((int(x) - 150, int(y) - 150, int(x) + 150, int(y) + 150))).astype(int)

    def until(self, seen: Callable[[np.ndarray], bool]) -> np.ndarray:
        """The first picture of which `seen` is true."""
        deadline = time.monotonic() + WAIT_S
        while not seen(picture := self.picture()):
            assert time.monotonic() < deadline, "the picture did not become what it should"
            self.page.wait_for_timeout(200)
        return picture

    def at_rest(self) -> np.ndarray:
        """The sharp picture: one that is still the same after two seconds."""
        picture = self.picture()
        while True:
            self.page.wait_for_timeout(2000)
            before, picture = picture, self.picture()
            if np.abs(picture - before).mean() < 0.1:
                return picture

    def drag(self, right: int, down: int = 0) -> None:
        mouse = self.page.mouse
        mouse.move(200, 200)
        mouse.down()
        for step in range(1, 5):
            mouse.move(200 + right * step / 4, 200 + down * step / 4)
        mouse.up()

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_label(label, exact=True).first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def download(self, button: str) -> bytes:
        with self.page.expect_download() as started:
            self.page.get_by_role("button", name=button, exact=True).click()
        return started.value.path().read_bytes()


@pytest.fixture(scope="module")
def viewer() -> Iterator[Viewer]:
    viewer = Viewer(load_model("builtin:cars"))
    yield viewer
    viewer.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=WAIT_S * 1000)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def window(viewer: Viewer, browser: sync_api.Browser) -> Window:
    return Window(browser.new_page(viewport={"width": 800, "height": 480}), viewer.url)


def is_car(picture: np.ndarray) -> bool:
    """Something dark or coloured before a white background."""
    return picture[:15].mean() > 240 and picture[110:190, 110:190].mean() < 200


def is_black_around(picture: np.ndarray) -> bool:
    return picture[:15].mean() < 30


def blue_lines(picture: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(300, 300): where the picture is bluer than it was."""
    return (picture[..., 2] - picture[..., 0]) - (before[..., 2] - before[..., 0]) > 40


def is_other_than(before: np.ndarray) -> Callable[[np.ndarray], bool]:
    return lambda picture: bool(np.abs(picture - before).mean() > 3)


def test_the_page_shows_the_car_turns_it_and_switches(window: Window) -> None:
    first = window.until(is_car)
    window.drag(150)
    turned = window.until(lambda picture: is_car(picture) and is_other_than(first)(picture))
    window.choose("Channel", "opacity")
    opacity = window.until(is_black_around)
    assert opacity[110:190, 110:190].mean() > 150, "the car is opaque"
    window.choose("Channel", "colour")
    window.until(is_car)
    window.choose("Branch", "difference")
    difference = window.until(is_black_around)
    assert difference.mean() < opacity.mean(), "the branches mostly agree"
    window.choose("Branch", "3D branch")
    window.until(is_car)
    window.page.get_by_role("button", name="Another seed").click()
    window.until(lambda picture: is_car(picture) and is_other_than(turned)(picture))
    assert window.errors == [] and window.outside == []


def test_each_window_has_its_own_camera(window: Window, viewer: Viewer, browser: sync_api.Browser) -> None:
    window.until(is_car)
    before = window.at_rest()
    other = Window(browser.new_page(viewport={"width": 800, "height": 480}), viewer.url)
    first = other.until(is_car)
    other.drag(-180)
    other.until(is_other_than(first))
    assert np.abs(window.at_rest() - before).mean() < 1
    other.page.close()
    window.drag(40)
    window.until(is_other_than(before))


def test_the_page_exports_the_picture_and_a_path(window: Window, tmp_path) -> None:
    image = Image.open(io.BytesIO(window.download("Screenshot")))
    assert image.size == (64, 64) and np.asarray(image)[:2].mean() > 240
    window.page.get_by_role("button", name="Add view to path").click()
    window.page.get_by_text("Path through 1 views").wait_for()
    file = tmp_path / "cameras.json"
    file.write_bytes(window.download("Camera path"))
    assert len(json.loads(file.read_text(encoding="utf-8"))["labels"]) == 48
    assert read_cameras(file, get_recipe("cars-small").camera).shape == (48, 25)
    assert window.errors == [] and window.outside == []


def test_the_mesh_lies_over_the_picture_and_is_exported_as_the_video_is(window: Window) -> None:
    window.choose("Channel", "colour")
    window.choose("Branch", "3D branch")
    plain = window.at_rest()
    window.choose("Mesh", "wireframe")
    window.until(lambda picture: blue_lines(picture, plain)[110:190, 110:190].mean() > 0.2)
    assert blue_lines(window.at_rest(), plain)[:15].mean() < 0.01, "on the car alone"
    window.choose("Mesh", "off")
    window.until(lambda picture: blue_lines(picture, plain).mean() < 0.01)
    mesh = trimesh.load(io.BytesIO(window.download("Mesh")), file_type="glb", force="mesh")
    assert len(mesh.faces) > 1000
    assert window.download("Video")[4:8] == b"ftyp"
    assert window.errors == [] and window.outside == []


def test_a_camera_of_the_data_set_is_clicked_and_looked_from(browser: sync_api.Browser) -> None:
    model = load_model("builtin:cars")
    settings = model.config.camera
    near = dataclasses.replace(settings, radius=settings.radius / 2)
    camera = at_yaw(near, torch.tensor([FIRST_YAW + 0.1], dtype=torch.float64))[0]
    green = np.zeros((64, 64, 3), dtype=np.uint8) + np.array([0, 200, 0], dtype=np.uint8)
    view = DatasetView(7, tuple(camera.tolist()), green)
    viewer = Viewer(model, views=[view])
    try:
        window = Window(browser.new_page(viewport={"width": 800, "height": 480}), viewer.url)
        cameras = window.page.get_by_label("Cameras", exact=True)
        cameras.uncheck()
        window.until(is_car)
        without = window.at_rest()
        cameras.check()
        shown = window.until(is_other_than(without))
        rows, columns = np.nonzero(
            (shown[..., 1] - shown[..., 0] > 60) & (shown[..., 1] - shown[..., 2] > 60)
        )
        assert len(rows) > 50, "the image stands in the camera's frustum"
        box = window.page.locator("canvas").first.bounding_box()
        assert box is not None
        left, top = box["x"] + box["width"] / 2 - 150, box["y"] + box["height"] / 2 - 150
        window.page.mouse.click(left + float(np.median(columns)), top + float(np.median(rows)))
        window.page.get_by_text("Real image, row 7").wait_for()
        window.until(is_other_than(shown))
        assert window.errors == [] and window.outside == []
    finally:
        viewer.close()
