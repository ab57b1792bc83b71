"""Images of a mesh by ray casting: anti-aliased colour on white, exact depth, coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from scipy.spatial import ConvexHull, QhullError
from trimesh.ray.ray_pyembree import RayMeshIntersector

from mimic3d import cameras as geometry
from mimic3d_platform.data.render.meshes import Mesh

# Light as a function of a face's normal alone, so that a point has one colour from wherever it is seen.
_AMBIENT = 0.48
_KEY = (0.62, np.array([0.35, 0.85, 0.40]))
_FILL = (0.16, np.array([-0.60, 0.25, -0.75]))
# The pixel's filter, a Gaussian as film renderers use, in pixels. A box over the pixel lets twice as much
# through at the highest frequency an image can hold, where it is mostly aliasing.
_SIGMA = 0.5
_REACH = 1  # whole pixels beyond the pixel's own, on either side: the Gaussian is cut at three sigma


@dataclass(frozen=True)
class Views:
    """Renders of V cameras at R×R.

    Attributes:
        images: (V, R, R, 3) uint8, on white.
        depth: (V, R, R) float32, world units along the pixel centre's ray; +inf where it hits nothing.
        mask: (V, R, R) uint8, how much of the pixel the mesh covers, under the same filter; 255 for all.
    """

    images: np.ndarray
    depth: np.ndarray
    mask: np.ndarray


class RayCaster:
    """A mesh in a ray-tracing scene, kept for any number of colourings and cameras."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        # process=False keeps the faces in order: a hit is an index into the mesh's own faces.
        self._scene = RayMeshIntersector(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False))
        corners = mesh.vertices[mesh.faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self._normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        self._anchors = corners[:, 0]
        self._outline = _outline(mesh.vertices)

    def render(self, colours: np.ndarray, cameras: torch.Tensor, resolution: int, supersample: int) -> Views:
        """Renders every camera, all their rays in one query.

        Args:
            colours: (F, 3) sRGB in [0, 1], of the mesh's faces.
            cameras: (V, 25) labels.
            resolution: R, pixels.
            supersample: S; S×S rays a pixel make colour and coverage, one more finds the depth.
        """
        labels = cameras.to(torch.float64)
        windows = [_window(label, self._outline, resolution) for label in labels]
        shading = [(view, window.scaled(supersample), True) for view, window in enumerate(windows)]
        sounding = [(view, window.within(resolution), False) for view, window in enumerate(windows)]
        jobs = shading + sounding
        rays = [
            _rays(labels[view], window, resolution * (supersample if shaded else 1))
            for view, window, shaded in jobs
        ]
        origins = np.concatenate([origin for origin, _ in rays])
        directions = np.concatenate([direction for _, direction in rays])
        hits = self._scene.intersects_first(origins, directions)
        colour = self._shade(colours, hits, directions)

        views = Views(
            np.full((len(labels), resolution, resolution, 3), 255, dtype=np.uint8),
            np.full((len(labels), resolution, resolution), np.inf, dtype=np.float32),
            np.zeros((len(labels), resolution, resolution), dtype=np.uint8),
        )
        start = 0
        for view, window, shaded in jobs:
            part = slice(start, start + window.size)
            start += window.size
            if not shaded:
                depth = self._depth(hits[part], origins[part], directions[part])
                views.depth[view][window.slices] = depth.reshape(window.shape)
                continue
            pixels = windows[view].grown(_REACH).within(resolution)
            rows = _filter(pixels.top, pixels.height, window.top, window.height, supersample)
            columns = _filter(pixels.left, pixels.width, window.left, window.width, supersample)
            covered = (hits[part] >= 0).reshape(window.shape)
            dark = 1 - colour[part].reshape(*window.shape, 3)  # 0 is white, which is all around the window
            image = 1 - np.einsum("ps,stc,qt->pqc", rows, dark, columns, optimize=True)
            views.images[view][pixels.slices] = np.rint(image.clip(0, 1) * 255)
            views.mask[view][pixels.slices] = np.rint((rows @ covered @ columns.T).clip(0, 1) * 255)
        return views

    def _shade(self, colours: np.ndarray, hits: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(n, 3) float32 in [0, 1]: a face's colour under the lights, seen from its lit or its other side."""
        sides = []
        for normals in (self._normals, -self._normals):
            light = np.full(len(normals), _AMBIENT)
            for strength, towards in (_KEY, _FILL):
                light += strength * np.maximum(normals @ (towards / np.linalg.norm(towards)), 0)
            sides.append(np.minimum(colours * light[:, None], 1.0))
        palette = np.concatenate([*sides, np.ones((1, 3))]).astype(np.float32)
        behind = (
            np.einsum("nk,nk->n", self._normals[hits].astype(np.float32), directions.astype(np.float32)) > 0
        )
        index = np.where(hits < 0, len(palette) - 1, hits + len(colours) * behind)
        return palette[index]

    def _depth(self, hits: np.ndarray, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Distances to the planes of the faces hit, in float64: the ray tracer's own are coarse."""
        with np.errstate(divide="ignore", invalid="ignore"):
            normals = self._normals[hits]
            ahead = np.einsum("...k,...k->...", self._anchors[hits] - origins, normals)
            distance = ahead / np.einsum("...k,...k->...", directions, normals)
        return np.where(hits < 0, np.inf, distance).astype(np.float32)


@dataclass(frozen=True)
class _Window:
    """A rectangle of pixels: rows from `top`, columns from `left`."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> int:
        return self.height * self.width

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def grown(self, margin: int) -> _Window:
        return _Window(
            self.top - margin, self.left - margin, self.height + 2 * margin, self.width + 2 * margin
        )

    def within(self, resolution: int) -> _Window:
        """What of it lies in an image."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.height, resolution), min(self.left + self.width, resolution)
        return _Window(top, left, max(bottom - top, 0), max(right - left, 0))

    def scaled(self, factor: int) -> _Window:
        return _Window(self.top * factor, self.left * factor, self.height * factor, self.width * factor)


def _outline(vertices: np.ndarray) -> np.ndarray:
    """The corners of the convex hull: of all vertices, these reach furthest in any view."""
    try:
        return vertices[ConvexHull(vertices).vertices]
    except QhullError:  # It is flat.
        return vertices


def _window(label: torch.Tensor, vertices: np.ndarray, resolution: int) -> _Window:
    """The pixels that a mesh with these vertices can touch, in the image or within the filter's reach."""
    low, high = -_REACH, resolution + _REACH
    uv, distance = geometry.project(label[None], torch.from_numpy(vertices)[None])
    if (distance <= 0).any():  # some of it is behind the camera
        return _Window(low, low, high - low, high - low)
    first = (uv[0].amin(dim=0) * resolution).floor().int().clamp(low, high).tolist()
    last = (uv[0].amax(dim=0) * resolution).ceil().int().clamp(low, high).tolist()
    return _Window(first[1], first[0], max(last[1] - first[1], 0), max(last[0] - first[0], 0))


def _filter(first: int, pixels: int, first_sample: int, samples: int, supersample: int) -> np.ndarray:
    """(pixels, samples): what each sample along one axis adds to each pixel."""
    centres = np.arange(first, first + pixels) + 0.5
    positions = (np.arange(first_sample, first_sample + samples) + 0.5) / supersample
    away = positions - centres[:, None]
    weights = np.exp(-0.5 * (away / _SIGMA) ** 2) * (np.abs(away) < 0.5 + _REACH)
    taps = (np.arange((1 + 2 * _REACH) * supersample) + 0.5) / supersample - 0.5 - _REACH
    return weights / np.exp(-0.5 * (taps / _SIGMA) ** 2).sum()


def _rays(label: torch.Tensor, window: _Window, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions (n, 3), float64, through the window's pixels of an image of side×side."""
    u = (torch.arange(window.left, window.left + window.width, dtype=torch.float64) + 0.5) / side
    v = (torch.arange(window.top, window.top + window.height, dtype=torch.float64) + 0.5) / side
    rows, columns = torch.meshgrid(v, u, indexing="ij")
    uv = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    origins, directions = geometry.rays(label[None], uv)
    return origins[0].numpy(), directions[0].numpy()
