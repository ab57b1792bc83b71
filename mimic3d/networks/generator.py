"""The generator: one tri-plane, rendered by a 2D branch and by a 3D branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mimic3d.cameras import pixel_grid, rays
from mimic3d.config import Config, ModelConfig, RenderingConfig
from mimic3d.networks.backbone import Backbone, TriPlanes
from mimic3d.networks.decoder import Decoder
from mimic3d.networks.layers import NOISE_MODES
from mimic3d.networks.superres import Superresolution
from mimic3d.rendering.guided import depth_interval, interval_at, interval_depths
from mimic3d.rendering.triplane import sample_triplane
from mimic3d.rendering.volume import Composite, composite, importance_depths, stratified_depths
from mimic3d.sample_noise import uniform_rows

BRANCHES = ("2d", "3d")
DEFAULT_MAX_POINTS = 2**20
# Memory of a sample point while it is evaluated without gradients, in float32: its features on each plane,
# the decoder's hidden layer several times, its positions on the planes.
POINT_BYTES = 2048


def points_within(memory: int) -> int:
    """The number of sample points that `memory` bytes can evaluate at once: a bound for `max_points`."""
    return max(1, memory // POINT_BYTES)


class View(NamedTuple):
    """The result of rendering one branch from a batch of cameras."""

    image: Tensor
    """(N, 3, R, R), about [-1, 1]."""
    raw: Tensor
    """(N, 3, r, r): the 2D branch's small render; for the 3D branch, the image itself."""
    depth: Tensor
    """(N, 1, r, r), distance along the ray in world units."""
    opacity: Tensor
    """(N, 1, r, r), the sum of the ray's weights, from 0 to 1."""
    depth_intervals: Tensor | None = None
    """(N, 2, r, r), of the 2D branch with guided samples: for `branch_3d` with the same camera."""


class Generator(nn.Module):
    """Mimic3D's generator, or EG3D's with `architecture="eg3d"` (no 3D-aware blocks, no 3D branch)."""

    def __init__(self, model: ModelConfig, rendering: RenderingConfig) -> None:
        super().__init__()
        self.config, self.rendering = model, rendering
        self.backbone = Backbone(
            model.triplane_resolution,
            model.z_dim,
            model.w_dim,
            model.mapping_layers,
            model.plane_channels,
            model.channel_base,
            model.channel_max,
            aware3d=model.architecture == "mimic3d",
            aware_s3d=model.aware_s3d,
        )
        self.superresolution = Superresolution(
            model.plane_channels,
            model.superresolution_channels,
            model.w_dim,
            model.superresolution_input,
            model.image_resolution,
            model.precision,
            model.superresolution_border,
        )
        self.decoder = Decoder(model.plane_channels)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that it renders: EG3D has no 3D branch, the patch-GAN baseline no 2D branch."""
        if self.config.architecture == "eg3d":
            return ("2d",)
        return BRANCHES if self.config.branch_2d else ("3d",)

    def require_branch(self, branch: str) -> None:
        """Raises ValueError unless `branch` is one of `self.branches`."""
        if branch not in self.branches:
            known = f"{', '.join(self.branches)} for a generator of {self.config.architecture}"
            raise ValueError(f"branch is {branch!r}, but must be one of {known}")

    def mapping(
        self,
        z: Tensor,
        camera: Tensor,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        update_w_avg: bool = False,
    ) -> Tensor:
        """(N, z_dim) and (N, 25) to (N, num_ws, w_dim); see `Mapping.forward`."""
        return self.backbone.mapping(z, camera, truncation, truncation_cutoff, update_w_avg)

    def planes(self, w: Tensor, detail: bool = True, noise: str = "const") -> TriPlanes:
        """The tri-planes of (N, num_ws, w_dim); `noise` is random, const or none."""
        if noise not in NOISE_MODES:
            raise ValueError(f"noise is {noise!r}, but must be one of {', '.join(NOISE_MODES)}")
        return self.backbone.synthesis(w, detail=detail, noise=noise)

    def field(self, planes: TriPlanes, points: Tensor, outputs: int | None = 3) -> tuple[Tensor, Tensor]:
        """Raw density (N, M, 1) and the first `outputs` features (N, M, outputs) at points (N, M, 3)."""
        axes, box = self.config.architecture, self.rendering.box_warp
        features = sample_triplane(planes.coarse, points, box, axes)
        if planes.detail is not None:
            features = features + sample_triplane(planes.detail, points, box, axes)
        return self.decoder(features, outputs)

    def render_rays(
        self,
        planes: TriPlanes,
        origins: Tensor,
        directions: Tensor,
        *,
        outputs: int | None = None,
        stochastic: bool = False,
        first: int = 0,
    ) -> Composite:
        """Two-pass volume rendering along rays; the branch is that of `planes`.

        Args:
            origins, directions: (N, M, 3).
            outputs: the number of features that are rendered (3 is RGB); all when None.
            stochastic: jitters the samples, as in training; otherwise they are at fixed quantiles.
            first: index of the first ray among those of the image, for `sample_noise`.
        """
        settings = self.rendering
        batch, count = origins.shape[:2]
        shape = (batch, count, settings.coarse_samples, 1)
        if stochastic:
            jitter = uniform_rows(shape, origins.device, stream="coarse", first=first)
        else:
            jitter = origins.new_full(shape, 0.5)
        depths = stratified_depths(settings.near, settings.far, settings.coarse_samples, jitter)
        densities, features = self._sample(planes, origins, directions, depths, outputs)

        white = settings.white_background
        with torch.no_grad():
            weights = composite(densities.detach(), features.detach(), depths, white).weights
        quantiles = (batch, count, settings.importance_samples)
        if stochastic:
            u = uniform_rows(quantiles, origins.device, stream="importance", first=first)
        else:
            u = torch.linspace(0, 1, settings.importance_samples, device=origins.device).expand(quantiles)
        fine_depths = importance_depths(depths, weights, u)
        fine_densities, fine_features = self._sample(planes, origins, directions, fine_depths, outputs)

        depths, order = torch.cat([depths, fine_depths], dim=-2).sort(dim=-2)
        densities = torch.cat([densities, fine_densities], dim=-2).gather(-2, order)
        features = torch.cat([features, fine_features], dim=-2)
        features = features.gather(-2, order.expand(-1, -1, -1, features.shape[-1]))
        return composite(densities, features, depths, white)

    def _sample(
        self, planes: TriPlanes, origins: Tensor, directions: Tensor, depths: Tensor, outputs: int | None
    ) -> tuple[Tensor, Tensor]:
        points = origins[:, :, None] + depths * directions[:, :, None]
        densities, features = self.field(planes, points.flatten(1, 2), outputs)
        return densities.view(*depths.shape), features.view(*depths.shape[:3], -1)

    def branch_2d(
        self,
        planes: TriPlanes,
        w: Tensor,
        camera: Tensor,
        *,
        stochastic: bool = False,
        max_points: int | None = None,
    ) -> View:
        """The 2D branch: a small feature image rendered from the coarse planes, then S2D."""
        resolution = self.config.neural_rendering_resolution
        coarse = TriPlanes(planes.coarse, None)

        def render(uv: Tensor, first: int) -> Composite:
            return self.render_rays(coarse, *rays(camera, uv), stochastic=stochastic, first=first)

        features, depth, opacity, *intervals = self._render_image(
            render, resolution, camera, max_points, intervals=self.rendering.guided_samples > 0
        )
        image = self.superresolution(features, w[:, -1])
        return View(image, features[:, :3], depth, opacity, *intervals)

    def branch_3d(
        self,
        planes: TriPlanes,
        camera: Tensor,
        uv: Tensor,
        *,
        stochastic: bool = False,
        intervals: Tensor | None = None,
        first: int = 0,
    ) -> Composite:
        """The 3D branch: RGB of coarse + detail at image points.

        Args:
            uv: (M, 2) or (N, M, 2).
            stochastic: jitters the samples, as in training.
            intervals: for guided samples, the depth intervals of the 2D branch's view of the same planes and
                cameras; when None, they are rendered here.
            first: index of the first ray among those of the image, for `sample_noise`.
        Returns:
            features (N, M, 3).
        """
        if planes.detail is None:
            raise ValueError("the 3D branch needs detail planes: call planes(w, detail=True)")
        origins, directions = rays(camera, uv)
        count = self.rendering.guided_samples
        if not count:
            return self.render_rays(
                planes, origins, directions, outputs=3, stochastic=stochastic, first=first
            )
        intervals = self.depth_intervals(planes, camera) if intervals is None else intervals
        shape = (*origins.shape[:2], count, 1)
        if stochastic:
            jitter = uniform_rows(shape, origins.device, stream="guided", first=first)
        else:
            jitter = origins.new_full(shape, 0.5)
        depths = interval_depths(interval_at(intervals, uv, self.rendering.far), jitter)
        densities, features = self._sample(planes, origins, directions, depths, outputs=3)
        return composite(densities, features, depths, self.rendering.white_background)

    @torch.no_grad()
    def depth_intervals(
        self, planes: TriPlanes, camera: Tensor, max_points: int | None = None, *, stochastic: bool = False
    ) -> Tensor:
        """(N, 2, r, r): the depth intervals of the small render's rays through the coarse planes."""
        coarse, resolution = TriPlanes(planes.coarse, None), self.config.neural_rendering_resolution
        uv = pixel_grid(resolution, device=camera.device)
        intervals = []
        for first, part in self._chunks(uv, len(camera), max_points):
            rendered = self.render_rays(
                coarse, *rays(camera, part), outputs=0, stochastic=stochastic, first=first
            )
            intervals.append(depth_interval(rendered))
        return _as_image(torch.cat(intervals, dim=1), resolution)

    def view(
        self,
        planes: TriPlanes,
        w: Tensor,
        camera: Tensor,
        branch: str = "3d",
        max_points: int = DEFAULT_MAX_POINTS,
        *,
        stochastic: bool = False,
    ) -> View:
        """Renders whole images; at most `max_points` sample points are in memory at once.

        Args:
            planes: of `self.planes(w)`, with detail for the 3D branch.
            w: (N, num_ws, w_dim).
            camera: (N, 25).
            branch: one of `self.branches`.
            max_points: see `points_within` for a bound in bytes.
            stochastic: jitters the samples, as in training; otherwise they are at fixed quantiles.
        """
        self.require_branch(branch)
        if branch == "2d":
            return self.branch_2d(planes, w, camera, stochastic=stochastic, max_points=max_points)
        intervals = None
        if self.rendering.guided_samples:
            intervals = self.depth_intervals(planes, camera, max_points, stochastic=stochastic)

        def render(uv: Tensor, first: int) -> Composite:
            return self.branch_3d(planes, camera, uv, stochastic=stochastic, intervals=intervals, first=first)

        resolution = self.config.image_resolution
        image, depth, opacity = self._render_image(render, resolution, camera, max_points)
        return View(image, image, depth, opacity)

    def _render_image(
        self,
        render: Callable[[Tensor, int], Composite],
        resolution: int,
        camera: Tensor,
        max_points: int | None,
        *,
        intervals: bool = False,
    ) -> tuple[Tensor, ...]:
        """Features (N, C, resolution, resolution), depth and opacity of each pixel.

        Args:
            render: image points (M, 2), and the index of the first of them, to their rays' composite.
            intervals: whether the depth intervals are returned as well.
        """
        uv = pixel_grid(resolution, device=camera.device)
        parts = []
        for first, part in self._chunks(uv, len(camera), max_points):
            rendered = render(part, first)
            outputs = (rendered.features, rendered.depth, rendered.weights.sum(dim=-2))
            parts.append((*outputs, depth_interval(rendered)) if intervals else outputs)
        joined = (torch.cat(output, dim=1) for output in zip(*parts, strict=True))
        return tuple(_as_image(output, resolution) for output in joined)

    def _chunks(self, uv: Tensor, batch: int, max_points: int | None) -> Iterator[tuple[int, Tensor]]:
        """Parts of `uv`, for which one pass over all cameras' rays takes at most `max_points` points.

        Yields:
            the index of a part's first point, and the part.
        """
        settings = self.rendering
        samples = max(settings.coarse_samples, settings.importance_samples, settings.guided_samples)
        size = len(uv) if max_points is None else max(1, max_points // (samples * batch))
        yield from ((first, uv[first : first + size]) for first in range(0, len(uv), size))


def _as_image(values: Tensor, resolution: int) -> Tensor:
    """(N, R², C), row by row, to (N, C, R, R)."""
    return values.transpose(1, 2).unflatten(-1, (resolution, resolution))


def build_generator(config: Config) -> Generator:
    """The generator of a run's config, at its random initialisation."""
    generator = Generator(config.model, config.rendering)
    generator.backbone.synthesis.scale_detail(config.model.detail_init)
    return generator
