"""Rendering a mesh by ray casting: anti-aliased colour on white, exact depth, coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from scipy.spatial import ConvexHull, QhullError
from trimesh.ray.ray_pyembree import RayMeshIntersector

from mimic3d import cameras as geometry
from mimic3d_platform.data.render.meshes import Mesh

# Lighting depends on a face's normal alone, so that a point has the same colour in all views.
_AMBIENT = 0.48
_KEY = (0.62, np.array([0.35, 0.85, 0.40]))
_FILL = (0.16, np.array([-0.60, 0.25, -0.75]))
# The pixel filter: a Gaussian, as film renderers use, of this standard deviation in pixels. A box filter
# passes twice as much of the highest frequency of an image, which is mostly aliasing there.
_SIGMA = 0.5
_REACH = 1  # The Gaussian is cut off at three sigma: this many pixels beyond the pixel's own on each side.


@dataclass(frozen=True)
class Views:
    """Renders of V cameras at R×R.

    Attributes:
        images: (V, R, R, 3) uint8, on white.
        depth: (V, R, R) float32, world units along the ray of the pixel's centre; +inf where it hits nothing.
        mask: (V, R, R) uint8, the share of the pixel that the mesh covers, under the same filter; 255 is all.
    """

    images: np.ndarray
    depth: np.ndarray
    mask: np.ndarray


class RayCaster:
    """Renders a mesh, in any colouring and from any cameras."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        # process=False keeps the order of the faces: hits are indices of the mesh's own faces.
        self._scene = RayMeshIntersector(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False))
        corners = mesh.vertices[mesh.faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self._normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        self._anchors = corners[:, 0]
        self._hull = _convex_hull(mesh.vertices)

    def render(self, colours: np.ndarray, cameras: torch.Tensor, resolution: int, supersample: int) -> Views:
        """Renders all cameras, with all their rays in one query.

        Args:
            colours: (F, 3) sRGB in [0, 1], of the mesh's faces.
            cameras: (V, 25) labels.
            resolution: R, pixels.
            supersample: S: S×S rays per pixel give colour and coverage, one more gives the depth.
        """
        labels = cameras.to(torch.float64)
        areas = [_visible_area(label, self._hull, resolution) for label in labels]
        bundles = [_Bundle(view, area.scaled(supersample), True) for view, area in enumerate(areas)]
        bundles += [_Bundle(view, area.within(resolution), False) for view, area in enumerate(areas)]
        rays = [
            _rays(labels[bundle.view], bundle.area, resolution * (supersample if bundle.shaded else 1))
            for bundle in bundles
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
        for bundle in bundles:
            view, area = bundle.view, bundle.area
            part = slice(start, start + area.size)
            start += area.size
            if not bundle.shaded:
                depth = self._depth(hits[part], origins[part], directions[part])
                views.depth[view][area.slices] = depth.reshape(area.shape)
                continue
            pixels = areas[view].grown(_REACH).within(resolution)
            rows = _filter(pixels.top, pixels.height, area.top, area.height, supersample)
            columns = _filter(pixels.left, pixels.width, area.left, area.width, supersample)
            covered = (hits[part] >= 0).reshape(area.shape)
            dark = 1 - colour[part].reshape(*area.shape, 3)  # 0 is white, the colour outside the area
            image = 1 - np.einsum("ps,stc,qt->pqc", rows, dark, columns, optimize=True)
            views.images[view][pixels.slices] = np.rint(image.clip(0, 1) * 255)
            views.mask[view][pixels.slices] = np.rint((rows @ covered @ columns.T).clip(0, 1) * 255)
        return views

    def _shade(self, colours: np.ndarray, hits: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(n, 3) float32 in [0, 1]: the lit colours of the faces hit, on the side that the ray hits."""
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
        """(n,) float32: distances to the planes of the faces hit; the ray tracer's own are less exact."""
        with np.errstate(divide="ignore", invalid="ignore"):
            normals = self._normals[hits]
            ahead = np.einsum("...k,...k->...", self._anchors[hits] - origins, normals)
            distance = ahead / np.einsum("...k,...k->...", directions, normals)
        return np.where(hits < 0, np.inf, distance).astype(np.float32)


@dataclass(frozen=True)
class _Area:
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

    def grown(self, margin: int) -> _Area:
        return _Area(self.top - margin, self.left - margin, self.height + 2 * margin, self.width + 2 * margin)

    def within(self, resolution: int) -> _Area:
        """The part that lies in an image."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.height, resolution), min(self.left + self.width, resolution)
        return _Area(top, left, max(bottom - top, 0), max(right - left, 0))

    def scaled(self, factor: int) -> _Area:
        return _Area(self.top * factor, self.left * factor, self.height * factor, self.width * factor)


@dataclass(frozen=True)
class _Bundle:
    """The rays of one view: through the samples of its visible area (`shaded`) or its pixels' centres."""

    view: int
    area: _Area
    shaded: bool


def _convex_hull(vertices: np.ndarray) -> np.ndarray:
    """The corners of the convex hull, which bound the mesh in any view."""
    try:
        return vertices[ConvexHull(vertices).vertices]
    except QhullError:  # a flat mesh
        return vertices


def _visible_area(label: torch.Tensor, vertices: np.ndarray, resolution: int) -> _Area:
    """The pixels that a mesh with these vertices can cover, in the image or within the filter's reach."""
    low, high = -_REACH, resolution + _REACH
    uv, distance = geometry.project(label[None], torch.from_numpy(vertices)[None])
    if (distance <= 0).any():  # a part is behind the camera
        return _Area(low, low, high - low, high - low)
    first = (uv[0].amin(dim=0) * resolution).floor().int().clamp(low, high).tolist()
    last = (uv[0].amax(dim=0) * resolution).ceil().int().clamp(low, high).tolist()
    return _Area(first[1], first[0], max(last[1] - first[1], 0), max(last[0] - first[0], 0))


def _filter(first: int, pixels: int, first_sample: int, samples: int, supersample: int) -> np.ndarray:
    """(pixels, samples): the filter's weight of each sample for each pixel, along one axis."""
    centres = np.arange(first, first + pixels) + 0.5
    positions = (np.arange(first_sample, first_sample + samples) + 0.5) / supersample
    away = positions - centres[:, None]
    weights = np.exp(-0.5 * (away / _SIGMA) ** 2) * (np.abs(away) < 0.5 + _REACH)
    taps = (np.arange((1 + 2 * _REACH) * supersample) + 0.5) / supersample - 0.5 - _REACH
    return weights / np.exp(-0.5 * (taps / _SIGMA) ** 2).sum()


def _rays(label: torch.Tensor, area: _Area, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions (n, 3), float64, through an area's pixels of an image of side×side."""
    u = (torch.arange(area.left, area.left + area.width, dtype=torch.float64) + 0.5) / side
    v = (torch.arange(area.top, area.top + area.height, dtype=torch.float64) + 0.5) / side
    rows, columns = torch.meshgrid(v, u, indexing="ij")
    uv = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    origins, directions = geometry.rays(label[None], uv)
    return origins[0].numpy(), directions[0].numpy()
