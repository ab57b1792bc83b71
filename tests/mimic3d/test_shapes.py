"""Surfaces are compared by distances that are known in closed form, and copies are found."""

import numpy as np
import pytest
import torch
import trimesh

from mimic3d.evaluation.registry import SHAPES
from mimic3d.evaluation.shapes import (
    POINTS,
    ShapeChamfer,
    chamfer_distance,
    compare_with_nearest,
    f_score,
    surface_points,
)

torch.set_num_threads(1)


def sphere(radius: float, seed: int = 0) -> torch.Tensor:
    mesh = trimesh.creation.icosphere(4, radius)
    return surface_points(mesh.vertices, mesh.faces, seed=seed)


def test_points_lie_on_the_surface_and_are_spread_by_area() -> None:
    # One triangle has three times the area of the other.
    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 5], [1, 0, 5], [0, 1, 5]], dtype=float)
    points = surface_points(vertices, np.array([[0, 1, 2], [3, 4, 5]]))
    assert points.shape == (POINTS, 3) and points.dtype == torch.float32
    low = points[:, 2] < 1
    assert float(low.float().mean()) == pytest.approx(0.75, abs=0.02)
    inside = (points[low, 0] / 3 + points[low, 1] <= 1 + 1e-6) & (points[low, :2] >= 0).all(dim=1)
    assert inside.all() and points[low, 2].eq(0).all()
    assert float(points[low, 0].mean()) == pytest.approx(1.0, abs=0.05), "the centroid's"
    assert torch.equal(points, surface_points(vertices, np.array([[0, 1, 2], [3, 4, 5]])))
    with pytest.raises(ValueError, match="no area"):
        surface_points(vertices, np.array([[0, 0, 1]]))


def test_concentric_spheres_are_apart_by_the_difference_of_their_radii() -> None:
    inner, outer = sphere(0.4), sphere(0.5, seed=1)
    assert chamfer_distance(inner, outer) == pytest.approx(0.1, abs=0.005)
    assert f_score(inner, outer, threshold=0.08) == 0
    assert f_score(inner, outer, threshold=0.13) > 0.95
    assert chamfer_distance(inner, inner) < 1e-3 and f_score(inner, inner) == 1


def test_the_nearest_is_found_and_a_copy_has_the_best_values() -> None:
    known = torch.stack([sphere(0.3), sphere(0.5), sphere(0.4)])
    chamfer, score, nearest = compare_with_nearest(sphere(0.41, seed=1), known)
    assert nearest == 2 and chamfer == pytest.approx(0.017, abs=0.006)
    copy, copied_score, _ = compare_with_nearest(known[1], known)
    assert copy < 1e-3 < chamfer and copied_score == 1 >= score


def test_objects_without_a_surface_are_said_and_not_counted() -> None:
    parts = torch.tensor([[0.1, 0.5, 0], [float("nan"), float("nan"), -1], [0.3, 0.7, 2]])
    chamfer, score = (metric.estimate(parts) for metric in SHAPES)
    assert chamfer.value == pytest.approx(0.2) and score.value == pytest.approx(0.6)
    assert chamfer.samples == 2 and chamfer.note == "1 of 3 objects have no surface"
    with pytest.raises(ValueError, match="no object has a surface"):
        ShapeChamfer().estimate(parts[1:2])
