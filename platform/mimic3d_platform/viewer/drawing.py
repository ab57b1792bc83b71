"""Draws what a client wants to see: latent, tri-planes, rays, picture. Knows no browser."""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Generator as Steps
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mimic3d.cameras import pixel_grid, rays
from mimic3d.config import Config
from mimic3d.export.latents import latents_of_seeds
from mimic3d.networks.backbone import TriPlanes
from mimic3d.networks.generator import Generator
from mimic3d.rendering.volume import Composite
from mimic3d_platform.viewer.pictures import Rendered, channel_image, difference, on_canvas, resized
from mimic3d_platform.viewer.view_settings import Identity, ViewSettings

# Bytes of tri-planes that are kept; at least the newest object's are.
PLANES_BYTES = 2**29
# A coarse picture takes about this long to render.
COARSE_S = 0.06
# The coarse picture has the sharp one's side divided by one of these, but not below the least side.
COARSE_FACTORS = (1, 2, 4, 8)
COARSE_SIDE = 16
COARSE_SAMPLES = 12
# Sample points between two steps: a newer request waits for one step at most.
_STEP_POINTS = {"cpu": 2**16, "cuda": 2**20}
# Sample points per second that are assumed until some have been timed.
_FIRST_RATE = {"cpu": 1e6, "cuda": 1e8}
_LEAST_SAMPLES = 8


@dataclass(frozen=True)
class Model:
    """A generator, its config, its name for the page, and its number among those the session has shown."""

    generator: Generator
    config: Config
    name: str
    version: int = 0

    @property
    def device(self) -> torch.device:
        """The device of the generator's weights."""
        return next(self.generator.parameters()).device

    @property
    def samples(self) -> int:
        """Samples along a ray that the model was trained with."""
        rendering = self.config.rendering
        return rendering.guided_samples or rendering.coarse_samples + rendering.importance_samples

    @property
    def paper(self) -> float:
        """The grey around pictures, in [-1, 1]: white where the model's background is, else dark."""
        return 1.0 if self.config.rendering.white_background else -0.75


@dataclass(frozen=True)
class Picture:
    """A drawn picture.

    Attributes:
        pixels: (H, W, 3) uint8, in the proportions of the browser's canvas.
        panels: (S, S, 3) uint8 each: the pictures without what is around them.
        samples: along each ray.
        seconds: from the first step to the last, without the time between steps.
    """

    pixels: np.ndarray
    panels: tuple[np.ndarray, ...]
    settings: ViewSettings
    size: int
    samples: int
    coarse: bool
    seconds: float


class DrawingSession:
    """A model, and the tri-planes of the objects that were drawn of it last.

    Pictures are drawn in steps by one thread; `latent`, `planes` and `replace_model` may be called by any.
    """

    def __init__(self, generator: Generator, config: Config, name: str) -> None:
        self.model = Model(generator, config, name)
        self._planes: OrderedDict[Identity, tuple[Tensor, TriPlanes]] = OrderedDict()
        self._lock = threading.Lock()
        self._rate = _FIRST_RATE.get(self.model.device.type, _FIRST_RATE["cuda"])

    def replace_model(self, generator: Generator, config: Config, name: str) -> None:
        """Shows another model from the next picture on."""
        with self._lock:
            self.model = Model(generator, config, name, self.model.version + 1)
            self._planes.clear()

    @torch.no_grad()
    def latent(self, identity: Identity, model: Model | None = None) -> Tensor:
        """(1, num_ws, w_dim): w of the object, blended and truncated."""
        model = model or self.model
        seeds = [identity.seed] if identity.blend == "none" else [identity.seed, identity.second_seed]
        z = latents_of_seeds(model.config.model, seeds).to(model.device)
        camera = torch.tensor([identity.conditioning], device=model.device).expand(len(z), -1)
        w = model.generator.mapping(z, camera, identity.truncation)
        if identity.blend == "interpolate":
            return w[:1].lerp(w[1:], identity.share)
        if identity.blend == "mix":
            first = identity.second_layers
            return torch.cat([w[:1, :first], w[1:, first:]], dim=1)
        return w

    @torch.no_grad()
    def planes(self, identity: Identity, model: Model | None = None) -> tuple[Tensor, TriPlanes]:
        """The object's latent and its tri-planes, computed once while they are in the cache."""
        model = model or self.model
        with self._lock:
            if model.version == self.model.version and identity in self._planes:
                self._planes.move_to_end(identity)
                return self._planes[identity]
        w = self.latent(identity, model)
        planes = model.generator.planes(w, detail="3d" in model.generator.branches)
        with self._lock:
            if model.version == self.model.version:
                self._planes[identity] = (w, planes)
                while len(self._planes) > 1 and sum(map(_bytes, self._planes.values())) > PLANES_BYTES:
                    self._planes.popitem(last=False)
        return w, planes

    def coarse_quality(self, settings: ViewSettings) -> tuple[int, int]:
        """The side and the samples per ray with which a picture takes about `COARSE_S` on this machine."""
        samples = max(_LEAST_SAMPLES, min(COARSE_SAMPLES, settings.samples // 2))
        side = settings.size
        for factor in COARSE_FACTORS:
            side = max(settings.size // factor, min(COARSE_SIDE, settings.size))
            points = side * side * samples * len(settings.branches)
            if points / self._rate <= COARSE_S:
                break
        return side, samples

    def draw(self, settings: ViewSettings, *, coarse: bool = False) -> Steps[None, None, Picture]:
        """Draws a picture in steps, of about `_STEP_POINTS` sample points each; the caller may stop between.

        Args:
            coarse: draws with `coarse_quality`, so that the answer comes at once.
        """
        model = self.model
        size, samples = self.coarse_quality(settings) if coarse else (settings.size, settings.samples)
        branches = [branch for branch in settings.branches if branch in model.generator.branches]
        branches = branches or list(model.generator.branches[:1])
        started, spent = time.perf_counter(), 0.0
        w, planes = self.planes(settings.identity, model)
        camera = torch.tensor([settings.camera], device=model.device)
        generator = with_samples(model.generator, samples)
        box = model.config.rendering.box_warp
        images = []
        for branch in branches:
            steps = self._render(generator, branch, planes, w, camera, size, samples)
            while True:
                try:
                    next(steps)
                except StopIteration as done:
                    rendered = done.value
                    break
                spent += time.perf_counter() - started
                yield
                started = time.perf_counter()
            images.append(channel_image(rendered, settings.channel, camera, box, model.paper))
        panels = [resized(image, max(size, images[0].shape[-1])) for image in images]
        if settings.shown == "difference" and len(panels) == 2:
            panels = [difference(*panels)]
        is_colour = settings.shown != "difference" and settings.channel in ("colour", "normals")
        around = model.paper if is_colour else -1.0
        pixels = on_canvas(panels, settings.aspect, around)
        squares = tuple(on_canvas([panel], 1.0, around) for panel in panels)
        seconds = spent + time.perf_counter() - started
        return Picture(pixels, squares, settings, size, samples, coarse, seconds)

    def _render(
        self,
        generator: Generator,
        branch: str,
        planes: TriPlanes,
        w: Tensor,
        camera: Tensor,
        size: int,
        samples: int,
    ) -> Steps[None, None, Rendered]:
        """Renders a branch in steps; at the model's own size it is what `Generator.view` renders.

        The 2D branch always has the model's size; for a smaller picture its feature image is smaller.
        """
        model = generator.config
        side = size
        if branch == "2d":
            full = model.neural_rendering_resolution
            side = max(min(_LEAST_SAMPLES, full), min(full, full * size // model.image_resolution))
            planes = TriPlanes(planes.coarse, None)
        intervals = None
        if branch == "3d" and generator.rendering.guided_samples:
            intervals = generator.depth_intervals(planes, camera, self._step_points(camera))
        uv = pixel_grid(side, device=camera.device)
        parts = []
        for part in uv.split(max(1, self._step_points(camera) // samples)):
            started = time.perf_counter()
            parts.append(_march(generator, branch, planes, camera, part, intervals))
            self._time(len(part) * samples, time.perf_counter() - started)
            yield
        features, depth, opacity = (
            torch.cat(values, dim=1).transpose(1, 2).unflatten(-1, (side, side))
            for values in zip(*parts, strict=True)
        )
        image = _superresolved(generator, features, w) if branch == "2d" else features
        return Rendered(image, depth, opacity)

    @staticmethod
    def _step_points(camera: Tensor) -> int:
        return _STEP_POINTS.get(camera.device.type, _STEP_POINTS["cuda"])

    def _time(self, points: int, seconds: float) -> None:
        """Takes a timed step into the running mean of sample points per second."""
        self._rate += 0.2 * (points / max(seconds, 1e-6) - self._rate)


def with_samples(generator: Generator, samples: int) -> Generator:
    """The same generator, sharing its weights, with `samples` samples along a ray."""
    rendering = generator.rendering
    if rendering.guided_samples:
        changed = replace(rendering, guided_samples=samples)
    else:
        changed = replace(rendering, coarse_samples=samples - samples // 2, importance_samples=samples // 2)
    other = copy.copy(generator)
    other.rendering = changed
    return other


@torch.no_grad()
def _march(
    generator: Generator,
    branch: str,
    planes: TriPlanes,
    camera: Tensor,
    uv: Tensor,
    intervals: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (1, M, C), depth (1, M, 1) and opacity (1, M, 1) of the rays through `uv` (M, 2)."""
    rendered: Composite
    if branch == "3d":
        rendered = generator.branch_3d(planes, camera, uv, intervals=intervals)
    else:
        rendered = generator.render_rays(planes, *rays(camera, uv))
    return rendered.features, rendered.depth, rendered.weights.sum(dim=-2)


@torch.no_grad()
def _superresolved(generator: Generator, features: Tensor, w: Tensor) -> Tensor:
    return generator.superresolution(features, w[:, -1])


def _bytes(entry: tuple[Tensor, TriPlanes]) -> int:
    coarse, detail = entry[1]
    return coarse.nbytes + (detail.nbytes if detail is not None else 0)
