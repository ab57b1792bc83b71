"""Metrics of a generated surface beside the nearest of some known ones: how near it is, or whether a copy."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mimic3d.evaluation.metric import Direction, Estimate, Metric, Need, bootstrap_mean
from mimic3d.randomness import counter_generator

# Points of each surface, drawn uniformly.
POINTS = 4096
# A point of one surface is found by the other within this distance, world units; objects are about 1 long.
THRESHOLD = 0.02


def surface_points(vertices: np.ndarray, faces: np.ndarray, count: int = POINTS, seed: int = 0) -> Tensor:
    """(count, 3) float32 points of a surface of triangles, drawn uniformly by area.

    Raises:
        ValueError: the triangles have no area.
    """
    corners = torch.from_numpy(np.asarray(vertices, dtype=np.float64)[np.asarray(faces)])
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = torch.linalg.cross(first, second).norm(dim=1)
    if not areas.sum() > 0:
        raise ValueError("the surface has no area")
    source = counter_generator(seed, "surface points")
    chosen = torch.multinomial(areas, count, replacement=True, generator=source)
    along = torch.rand(2, count, 1, generator=source, dtype=torch.float64)
    along = torch.where(along.sum(dim=0) > 1, 1 - along, along)
    return (corners[chosen, 0] + along[0] * first[chosen] + along[1] * second[chosen]).float()


def nearest_distances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The distances (n,) of points `a` (n, 3) to the nearest of `b` (m, 3), and (m,) of `b` to `a`."""
    distances = torch.cdist(a, b)
    return distances.min(dim=1).values, distances.min(dim=0).values


def chamfer_distance(a: Tensor, b: Tensor) -> float:
    """The mean distance of a point to the other surface, of both directions."""
    there, back = nearest_distances(a, b)
    return float(there.mean() + back.mean()) / 2


def f_score(a: Tensor, b: Tensor, threshold: float = THRESHOLD) -> float:
    """The harmonic mean of the shares of either surface that the other has within `threshold`."""
    there, back = nearest_distances(a, b)
    precision, recall = float((there < threshold).float().mean()), float((back < threshold).float().mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def compare_with_nearest(points: Tensor, known: Tensor) -> tuple[float, float, int]:
    """Chamfer distance and F-score of (n, 3) points and the nearest of (M, m, 3), and the number of that."""
    distances = [chamfer_distance(points, each) for each in known]
    nearest = int(np.argmin(distances))
    return distances[nearest], f_score(points, known[nearest]), nearest


class ShapeMetric(Metric):
    """A comparison of a generated surface with the nearest known one. Parts merge by concatenation."""

    kind: ClassVar[str]
    column: ClassVar[int]
    """Of `compare_with_nearest`."""
    needs: ClassVar[tuple[Need, ...]] = ("density", "known shapes")

    def name(self, extractor: str) -> str:
        return self.kind

    def estimate(self, parts: Tensor) -> Estimate:
        """The mean of (objects, 3) results of `compare_with_nearest`; NaN where an object has no surface.

        Raises:
            ValueError: no object has a surface.
        """
        values = parts[:, self.column]
        found = values[values.isfinite()]
        if not len(found):
            raise ValueError("no object has a surface")
        lacking = len(values) - len(found)
        return bootstrap_mean(found, f"{lacking} of {len(values)} objects have no surface" if lacking else "")


class ShapeChamfer(ShapeMetric):
    kind, column = "shape_chamfer", 0
    direction: ClassVar[Direction] = "down"
    range = "0 to about 0.5, in lengths of an object; 0 for copies"
    about = "mean chamfer distance of a generated surface and the nearest known mesh"
    fooled_by = "copies of the known meshes; a known mesh's inner surfaces, which no view shows, raise it"


class ShapeFScore(ShapeMetric):
    kind, column = "shape_fscore", 1
    direction: ClassVar[Direction] = "up"
    range = "0 to 1; 1 for copies"
    about = f"mean F-score at {THRESHOLD:g} of a generated surface and the nearest known mesh"
    fooled_by = "as shape_chamfer"
