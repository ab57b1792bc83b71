"""The page of one client: its controls, its scene, and the picture behind it."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Literal, get_args

import numpy as np
import torch
import viser
from viser import transforms

from mimic3d.cameras import intrinsics, make_label, split_label
from mimic3d.export.marching_cubes import NoSurfaceError
from mimic3d.export.orbits import front
from mimic3d_platform.viewer import exports
from mimic3d_platform.viewer.dataset_views import DatasetView
from mimic3d_platform.viewer.drawing import DrawingSession, Picture
from mimic3d_platform.viewer.scheduler import Scheduler
from mimic3d_platform.viewer.view_settings import (
    BLENDS,
    CHANNELS,
    Identity,
    ViewSettings,
    label_numbers,
    shown_by,
)

Conditioning = Literal["front", "fixed", "follow"]
MeshStyle = Literal["off", "wireframe", "solid"]
MAX_SEED = 2**31 - 1
SHOWN_MESH_RESOLUTION = 64
EXPORTED_MESH_RESOLUTION = 128
_BLUE, _ORANGE = (40, 110, 220), (230, 110, 30)


class Page:
    """Turns the controls and the camera of one client into settings, and shows the pictures drawn of them.

    viser calls the handlers in threads of its own.
    """

    def __init__(
        self,
        client: viser.ClientHandle,
        session: DrawingSession,
        scheduler: Scheduler,
        jobs: Executor,
        views: Sequence[DatasetView],
    ) -> None:
        self._client, self._session, self._scheduler, self._jobs = client, session, scheduler, jobs
        self._lock = threading.Lock()
        self._fixed = label_numbers(front(session.model.config.camera))
        self._keys: list[tuple[float, ...]] = []
        self._sharp: Picture | None = None
        self._coarse_ms = 0.0
        self._mesh_of: tuple[object, ...] | None = None
        self._g_label: tuple[float, ...] = ()
        self._add_controls(bool(views))
        self._add_frustums(views)
        client.camera.on_update(lambda _: self._changed())

    def redraw(self) -> None:
        """Asks for the picture anew, such as when the model has changed."""
        self._changed(force=True)

    def show(self, picture: Picture, waited: float) -> None:
        """Shows a picture behind the scene; called by the drawing thread."""
        self._client.scene.set_background_image(picture.pixels, format="png")
        if picture.coarse:
            self._coarse_ms = waited * 1000
            return
        self._sharp = picture
        self._status.content = (
            f"**{self._session.model.name}**  \n{picture.size}², {picture.samples} samples a ray: "
            f"{picture.seconds * 1000:.0f} ms; coarse after {self._coarse_ms:.0f} ms"
        )
        self._mesh_changed()

    def fail(self, error: Exception) -> None:
        """Shows why the newest settings could not be drawn; called by the drawing thread."""
        self._status.content = f"**{self._session.model.name}**  \nnot drawn: {_line(error)}"

    def _add_controls(self, has_views: bool) -> None:
        gui, model = self._client.gui, self._session.model
        config, layers = model.config, model.generator.backbone.mapping.num_ws
        self._status = gui.add_markdown(f"**{model.name}**")
        with gui.add_folder("Object"):
            self._seed = gui.add_number("Seed", 0, min=0, max=MAX_SEED, step=1)
            another = gui.add_button("Another seed")
            self._truncation = gui.add_slider("Truncation", 0.0, 1.5, 0.05, 1.0)
            self._blend = gui.add_dropdown("Second seed", BLENDS, initial_value="none")
            self._second = gui.add_number("Seed 2", 1, min=0, max=MAX_SEED, step=1, visible=False)
            self._share = gui.add_slider("Share of 2", 0.0, 1.0, 0.01, 0.5, visible=False)
            self._layers = gui.add_slider("2 from layer", 0, layers, 1, layers // 2, visible=False)
        with gui.add_folder("Picture"):
            shown = shown_by(model.generator.branches)
            self._shown = gui.add_dropdown("Branch", shown, initial_value=shown[0])
            self._channel = gui.add_dropdown("Channel", CHANNELS, initial_value="colour")
            self._samples = gui.add_slider(
                "Samples a ray", 8, max(192, 2 * model.samples), 4, max(8, model.samples // 4 * 4)
            )
            sizes = [config.model.image_resolution * factor // 2 for factor in (1, 2, 4, 8)]
            self._size = gui.add_dropdown("Size", [str(size) for size in sizes], initial_value=str(sizes[1]))
        with gui.add_folder("Camera of G"):
            self._conditioning = gui.add_dropdown(
                "Conditioned on", get_args(Conditioning), initial_value="front"
            )
            fix = gui.add_button("Fix at this view")
            home = gui.add_button("Look from the front")
        with gui.add_folder("Scene"):
            self._mesh = gui.add_dropdown("Mesh", get_args(MeshStyle), initial_value="off")
            self._frustums = gui.add_checkbox("Cameras", has_views)
            self._real = gui.add_image(np.full((8, 8, 3), 255, np.uint8), label="Real image", visible=False)
        with gui.add_folder("Export"):
            screenshot = gui.add_button("Screenshot")
            key = gui.add_button("Add view to path")
            clear = gui.add_button("Clear path")
            self._path = gui.add_markdown("")
            path = gui.add_button("Camera path")
            video = gui.add_button("Video")
            mesh = gui.add_button("Mesh")
        self._show_path()
        for control in (
            self._seed,
            self._truncation,
            self._second,
            self._share,
            self._layers,
            self._shown,
            self._channel,
            self._samples,
            self._size,
        ):
            control.on_update(lambda _: self._changed())
        self._blend.on_update(lambda _: self._blend_changed())
        self._conditioning.on_update(lambda _: self._conditioning_changed())
        self._mesh.on_update(lambda _: self._mesh_changed())
        self._frustums.on_update(lambda _: self._show_frustums())
        another.on_click(lambda _: self._take_seed(random.randrange(10_000)))
        fix.on_click(lambda _: self._fix_here())
        home.on_click(lambda _: self._look_from(label_numbers(front(self._session.model.config.camera))))
        screenshot.on_click(lambda _: self._download_screenshot())
        key.on_click(lambda _: self._add_key())
        clear.on_click(lambda _: self._clear_keys())
        path.on_click(lambda _: self._download_path())
        video.on_click(lambda _: self._download_video())
        mesh.on_click(lambda _: self._download_mesh())

    # What the client wants to see.

    def _changed(self, *, force: bool = False) -> None:
        """Submits the newest settings. The last caller has read the newest, because reads are in order."""
        with self._lock:
            self._scheduler.submit(self._client.client_id, self._settings(), self, force=force)
        self._show_frustums()

    def _settings(self) -> ViewSettings:
        camera = self._client.camera
        label = self._label()
        aspect = camera.image_width / max(1, camera.image_height)
        if not 0.1 < aspect < 10:  # Not a canvas yet.
            aspect = 1.0
        return ViewSettings(
            self._identity(label),
            label,
            int(self._samples.value),
            int(self._size.value),
            self._shown.value,
            self._channel.value,
            round(aspect, 3),
        )

    def _identity(self, label: tuple[float, ...]) -> Identity:
        conditioning = {
            "front": label_numbers(front(self._session.model.config.camera)),
            "fixed": self._fixed,
            "follow": label,
        }[self._conditioning.value]
        seed, truncation = int(self._seed.value), float(self._truncation.value)
        blend = self._blend.value
        # Controls that do not count are left out, so that they make no second set of planes.
        if blend == "none":
            return Identity(seed, conditioning, truncation=truncation)
        second = int(self._second.value)
        if blend == "interpolate":
            return Identity(
                seed, conditioning, second, blend, share=float(self._share.value), truncation=truncation
            )
        return Identity(
            seed, conditioning, second, blend, second_layers=int(self._layers.value), truncation=truncation
        )

    def _label(self) -> tuple[float, ...]:
        """The label of the camera that looks; its focal length is in units of the canvas's height."""
        camera = self._client.camera
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = torch.from_numpy(transforms.SO3(np.array(camera.wxyz)).as_matrix())
        pose[:3, 3] = torch.from_numpy(np.array(camera.position))
        return label_numbers(make_label(pose, intrinsics(0.5 / math.tan(camera.fov / 2))))

    def _take_seed(self, seed: int) -> None:
        # mypy takes viser's property for read-only: its setter does not follow its getter.
        self._seed.value = seed  # type: ignore[misc]
        self._changed()

    def _blend_changed(self) -> None:
        blend = self._blend.value
        self._second.visible = blend != "none"
        self._share.visible = blend == "interpolate"
        self._layers.visible = blend == "mix"
        self._changed()

    def _conditioning_changed(self) -> None:
        if self._conditioning.value == "fixed":
            self._fixed = self._label()
        self._changed()

    def _fix_here(self) -> None:
        self._fixed = self._label()
        self._conditioning.value = "fixed"  # type: ignore[misc]
        self._changed()

    def _look_from(self, label: tuple[float, ...]) -> None:
        """Moves the client's camera to that of a label."""
        pose, intrinsic = split_label(torch.tensor(label, dtype=torch.float64))
        position, forward = pose[:3, 3], pose[:3, 2]
        pivot = torch.tensor(self._session.model.config.camera.pivot, dtype=torch.float64)
        # The point of the line of sight that is nearest to the pivot is what the mouse turns about.
        ahead = max(float((pivot - position) @ forward), 0.1)
        camera = self._client.camera
        with self._client.atomic():
            camera.up_direction = (0.0, 1.0, 0.0)
            camera.position = position.numpy()
            camera.look_at = (position + ahead * forward).numpy()
            camera.fov = vertical_fov(float(intrinsic[1, 1]))

    # The scene.

    def _add_frustums(self, views: Sequence[DatasetView]) -> None:
        scene, settings = self._client.scene, self._session.model.config.camera
        scale = settings.radius / 12
        self._g_camera = scene.add_camera_frustum(
            "/camera_of_g", vertical_fov(settings.focal), 1.0, scale=scale, color=_ORANGE, visible=False
        )
        self._data_cameras = []
        for view in views:
            pose, intrinsic = split_label(torch.tensor(view.camera, dtype=torch.float64))
            frustum = scene.add_camera_frustum(
                f"/data/{view.row}",
                vertical_fov(float(intrinsic[1, 1])),
                1.0,
                scale=scale,
                color=_BLUE,
                image=view.image,
                wxyz=_quaternion(pose),
                position=pose[:3, 3].numpy(),
            )
            frustum.on_click(self._shows_real(view))
            self._data_cameras.append(frustum)

    def _shows_real(self, view: DatasetView) -> Callable[[object], None]:
        """The handler of a click on the view's frustum."""
        return lambda _: self._show_real(view)

    def _show_real(self, view: DatasetView) -> None:
        """Looks from a real image's camera, and shows the image beside the picture."""
        self._real.image = view.image
        self._real.label = f"Real image, row {view.row}"
        self._real.visible = True
        self._look_from(view.camera)

    def _show_frustums(self) -> None:
        """The frustums: none over two pictures, which have no single camera; G's where G follows no one."""
        single = self._shown.value != "side by side"
        for frustum in self._data_cameras:
            if frustum.visible != (single and self._frustums.value):
                frustum.visible = single and self._frustums.value
        shown = single and self._frustums.value and self._conditioning.value != "follow"
        label = self._identity(self._label()).conditioning
        if shown and label != self._g_label:
            self._g_label = label
            pose, intrinsic = split_label(torch.tensor(label, dtype=torch.float64))
            self._g_camera.position = pose[:3, 3].numpy()
            self._g_camera.wxyz = _quaternion(pose)
            self._g_camera.fov = vertical_fov(float(intrinsic[1, 1]))
        if self._g_camera.visible != shown:
            self._g_camera.visible = shown

    def _mesh_changed(self) -> None:
        self._jobs.submit(self._update_mesh)

    def _update_mesh(self) -> None:
        """Shows the mesh of the newest object; one of the jobs, so that no two run at a time."""
        settings, style = self._settings(), self._mesh.value
        if settings.shown == "side by side":
            style = "off"
        version = self._session.model.version
        wanted = None if style == "off" else (settings.identity, settings.branches[-1], style, version)
        if wanted == self._mesh_of:
            return
        self._mesh_of = wanted
        if wanted is None:
            self._client.scene.remove_by_name("/mesh")
            return
        try:
            mesh = exports.surface(self._session, settings, SHOWN_MESH_RESOLUTION)
        except (NoSurfaceError, RuntimeError) as error:
            self._client.scene.remove_by_name("/mesh")
            self._say("no mesh", _line(error))
            return
        if style == "solid":
            self._client.scene.add_mesh_trimesh("/mesh", mesh)
        else:
            self._client.scene.add_mesh_simple(
                "/mesh", np.asarray(mesh.vertices), np.asarray(mesh.faces), color=_BLUE, wireframe=True
            )

    # Exports.

    def _download_screenshot(self) -> None:
        if self._sharp is None:
            self._say("no screenshot", "the first sharp picture is still being drawn")
            return
        self._download(f"mimic3d-seed{self._seed.value}.png", exports.picture_png(self._sharp))

    def _add_key(self) -> None:
        self._keys.append(self._label())
        self._show_path()

    def _clear_keys(self) -> None:
        self._keys.clear()
        self._show_path()

    def _show_path(self) -> None:
        count = len(self._keys)
        self._path.content = f"Path through {count} views" if count else "Path: the model's orbit"

    def _cameras(self) -> torch.Tensor:
        return exports.camera_path(self._keys, self._session.model.config.camera)

    def _download_path(self) -> None:
        self._download("mimic3d-cameras.json", exports.camera_path_json(self._cameras()))

    def _download_video(self) -> None:
        with self._working("video") as progress:
            data = exports.video(
                self._session,
                self._settings(),
                self._cameras(),
                follows=self._conditioning.value == "follow",
                progress=progress,
            )
            self._download(f"mimic3d-seed{self._seed.value}.mp4", data)

    def _download_mesh(self) -> None:
        with self._working("mesh"):
            mesh = exports.surface(self._session, self._settings(), EXPORTED_MESH_RESOLUTION)
            self._download(f"mimic3d-seed{self._seed.value}.glb", exports.mesh_glb(mesh))

    def _download(self, name: str, content: bytes) -> None:
        self._client.send_file_download(name, content, save_immediately=True)

    @contextlib.contextmanager
    def _working(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Shows that an export is being made, and why it was not."""
        note = self._client.add_notification(f"Making the {what}", "", loading=True, with_close_button=False)

        def progress(done: int, total: int) -> None:
            note.body = f"{done} of {total} frames"

        try:
            yield progress
        except (ValueError, OSError, RuntimeError) as error:
            self._say(f"no {what}", _line(error))
        finally:
            note.remove()

    def _say(self, title: str, body: str) -> None:
        self._client.add_notification(title, body, auto_close_seconds=10.0)


def vertical_fov(focal: float) -> float:
    """The field of view, radians, of a focal length in units of the image's height."""
    return 2 * math.atan(0.5 / focal)


def _quaternion(pose: torch.Tensor) -> np.ndarray:
    return transforms.SO3.from_matrix(pose[:3, :3].numpy()).wxyz


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
