"""The viewer of one model: a server, a page for each client, and the thread that draws for all of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import viser

from mimic3d.cameras import split_label
from mimic3d.export.orbits import at_yaw
from mimic3d_platform.viewer.dataset_views import DatasetView
from mimic3d_platform.viewer.drawing import DrawingSession
from mimic3d_platform.viewer.model_source import LoadedModel
from mimic3d_platform.viewer.page import Page, vertical_fov
from mimic3d_platform.viewer.scheduler import Scheduler
from mimic3d_platform.viewer.server import LOOPBACK, start_server, stop_server, url_of

# Of the first view, radians, where the model is to be seen from all sides: neither quite from the side nor
# from the front.
FIRST_YAW = 0.6


class Viewer:
    """Serves the page until `close`.

    Attributes:
        url: of the page.
    """

    def __init__(
        self, model: LoadedModel, *, host: str = LOOPBACK, port: int = 0, views: Sequence[DatasetView] = ()
    ) -> None:
        """
        Args:
            port: 0 takes a free one.
            views: rows of the data set, shown as frustums.
        Raises:
            UserError: the port is taken.
        """
        self._server = start_server(host, port)
        self.url = url_of(self._server)
        self._session = DrawingSession(model.generator, model.config, model.name)
        self._scheduler = Scheduler(self._session.draw)
        self._views = views
        self._pages: dict[int, Page] = {}
        self._lock = threading.Lock()
        # Meshes and other work that takes seconds, one at a time, beside the pictures.
        self._jobs = ThreadPoolExecutor(1)
        self._drawing = threading.Thread(target=self._scheduler.run, name="viewer-drawing", daemon=True)
        self._drawing.start()
        self._set_scene()
        self._server.on_client_disconnect(self._leave)
        self._server.on_client_connect(self._join)

    @property
    def clients(self) -> int:
        """The number of open pages."""
        with self._lock:
            return len(self._pages)

    def replace_model(self, model: LoadedModel) -> None:
        """Shows another model on all pages."""
        self._session.replace_model(model.generator, model.config, model.name)
        with self._lock:
            pages = list(self._pages.values())
        for page in pages:
            page.redraw()

    def close(self) -> None:
        """Stops the server and the drawing thread."""
        self._scheduler.end()
        stop_server(self._server)
        self._drawing.join(timeout=10)
        self._jobs.shutdown(wait=False, cancel_futures=True)

    def _set_scene(self) -> None:
        settings = self._session.model.config.camera
        yaw = FIRST_YAW if settings.yaw_range >= 1.5 else 0.0
        camera = at_yaw(settings, torch.tensor([yaw], dtype=torch.float64))[0]
        pose, _ = split_label(camera)
        server = self._server
        server.scene.set_up_direction("+y")
        server.initial_camera.position = pose[:3, 3].numpy()
        server.initial_camera.look_at = settings.pivot
        server.initial_camera.up = (0.0, 1.0, 0.0)
        server.initial_camera.fov = vertical_fov(settings.focal)
        server.initial_camera.near = 0.01
        server.gui.configure_theme(show_logo=False, show_share_button=False, control_width="medium")
        server.gui.set_panel_label("mimic3d")
        server.gui.main_panel.dock_right()

    def _join(self, client: viser.ClientHandle) -> None:
        page = Page(client, self._session, self._scheduler, self._jobs, self._views)
        with self._lock:
            self._pages[client.client_id] = page
        page.redraw()

    def _leave(self, client: viser.ClientHandle) -> None:
        with self._lock:
            self._pages.pop(client.client_id, None)
        self._scheduler.remove(client.client_id)
