"""Triangles of polygons, also of those that are not convex."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def triangulate(points: np.ndarray, polygons: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Divides polygons of three or more corners into triangles.

    Convex polygons become fans; others are divided by clipping ears.

    Args:
        points: (V, 3).
        polygons: indices of `points`.
    Returns:
        (T, 3) int64, corners of each triangle as places within its polygon, and (T,) int64, the polygon of
        each triangle, in increasing order.
    """
    corners: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    counts = np.array([len(polygon) for polygon in polygons], dtype=np.int64)
    for count in np.unique(counts[counts >= 3]).tolist():
        chosen = np.flatnonzero(counts == count)
        places = points[np.array([polygons[index] for index in chosen.tolist()], dtype=np.int64)]
        fan = np.stack([np.zeros(count - 2, int), np.arange(1, count - 1), np.arange(2, count)], axis=1)
        convex = _is_fan(places) if count > 3 else np.ones(len(chosen), dtype=bool)
        corners.append(np.tile(fan, (int(convex.sum()), 1)))
        owners.append(np.repeat(chosen[convex], count - 2))
        for index, outline in zip(chosen[~convex], places[~convex], strict=True):
            ears = _clip_ears(outline)
            corners.append(ears)
            owners.append(np.full(len(ears), index))
    if not corners:
        return np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
    corner, owner = np.concatenate(corners).astype(np.int64), np.concatenate(owners).astype(np.int64)
    order = np.argsort(owner, kind="stable")
    return corner[order], owner[order]


def _is_fan(places: np.ndarray) -> np.ndarray:
    """(n,) bool: whether all triangles of a polygon's fan from its first corner face as the polygon does."""
    with np.errstate(invalid="ignore", over="ignore"):
        spokes = places[:, 1:] - places[:, :1]
        normals = np.cross(spokes[:, :-1], spokes[:, 1:])
        whole = normals.sum(axis=1, keepdims=True)
        along = (normals * whole).sum(axis=2)
        return (along >= -1e-12 * (whole**2).sum(axis=2)).all(axis=1)


def _clip_ears(outline: np.ndarray) -> np.ndarray:
    """(n - 2, 3) triangles of a polygon (n, 3): ears without another corner inside are cut off in turn."""
    spokes = outline[1:] - outline[0]
    normal = np.cross(spokes[:-1], spokes[1:]).sum(axis=0)
    length = np.linalg.norm(normal)
    if not np.isfinite(length) or length == 0:
        count = len(outline)
        return np.stack([np.zeros(count - 2, int), np.arange(1, count - 1), np.arange(2, count)], axis=1)
    # The axis that the normal is most along is left out, so that the polygon turns anticlockwise.
    axis = int(np.abs(normal).argmax())
    flat = outline[:, [(axis + 1) % 3, (axis + 2) % 3]]
    if normal[axis] < 0:
        flat = flat[:, ::-1]
    left, triangles = list(range(len(flat))), []
    while len(left) > 3:
        place = next((each for each in range(len(left)) if _is_ear(flat, left, each)), None)
        if place is None:
            # The outline crosses itself or has no area here: the sharpest corner is cut off.
            place = int(np.argmax([_turn(flat, left, each) for each in range(len(left))]))
        triangles.append([left[place - 1], left[place], left[(place + 1) % len(left)]])
        del left[place]
    return np.array([*triangles, left])


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Twice the area of triangles, positive if anticlockwise; the last axis holds x and y."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (
        c[..., 0] - a[..., 0]
    )


def _turn(flat: np.ndarray, left: list[int], place: int) -> float:
    return float(_cross(flat[left[place - 1]], flat[left[place]], flat[left[(place + 1) % len(left)]]))


def _is_ear(flat: np.ndarray, left: list[int], place: int) -> bool:
    a, b, c = flat[left[place - 1]], flat[left[place]], flat[left[(place + 1) % len(left)]]
    if _cross(a, b, c) <= 0:
        return False
    others = flat[left]
    # Corners that coincide with the ear's, as where a hole is joined to the outline, are not inside.
    apart = ~((others == a).all(axis=1) | (others == b).all(axis=1) | (others == c).all(axis=1))
    inside = (_cross(a, b, others) >= 0) & (_cross(b, c, others) >= 0) & (_cross(c, a, others) >= 0)
    return not bool((inside & apart).any())
