"""Marching cubes in slabs: the surface of a volume of which only a few slices are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# No density is nearer to the level than this. A vertex then keeps off the corners of its cell, where the
# vertices of several edges would fall on one place and could not be told apart.
_CLEARANCE = 1e-3
# What stands outside of a closed volume: so far below the level that the surface lies at the volume's side.
_EMPTY = 1e4


class NoSurface(ValueError):
    """The density does not cross the level anywhere in the volume."""


def slab_surface(
    slices: Iterator[np.ndarray], level: float, *, closed: bool, slab: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """The surface on which a volume has the value `level`, as one mesh (Lewiner et al., 2003).

    A slab begins with the slice that the one before ended with. Both cut it into the same vertices, to the
    last bit, since they do the same arithmetic in the same order there; by that their halves are joined.

    Args:
        slices: (B, C) float arrays of one size, which follow one another along the volume's first axis.
        level: larger values are inside.
        closed: as if nothing lay outside of the volume: what reaches its side is closed there.
        slab: slices in memory at a time.
    Returns:
        (V, 3) float64 vertices in units of samples, the first sample at 0, and (F, 3) faces, outwards.
    Raises:
        NoSurface: no value lies above the level, or, unless `closed`, none below.
    """
    vertices, faces = [], []
    before = np.zeros((0, 2)), np.zeros(0, np.int64)  # the seam: its vertices' places and their numbers
    start, count, highest = 0, 0, -np.inf
    for volume in _slabs(_padded(slices, level) if closed else slices, slab):
        highest = max(highest, float(volume.max()))
        found, triangles = _march(volume, level)
        at_start, at_end = found[:, 0] == 0, found[:, 0] == len(volume) - 1
        number = np.full(len(found), -1, np.int64)
        number[at_start] = _matched(found[at_start, 1:], *before)
        new = number < 0
        number[new] = count + np.arange(new.sum())
        before = found[at_end, 1:], number[at_end]
        # Not the slab's own numbers: float32 would lose what slab-local coordinates have.
        vertices.append(found[new] + [start, 0, 0])
        faces.append(number[triangles])
        count += int(new.sum())
        start += len(volume) - 1
    if count == 0:
        raise NoSurface(
            f"no surface: the density reaches {highest:.3g} in the box, level {level:g} is not below it; "
            "give a lower level or train for longer"
            if highest <= level
            else f"no surface: the density is above {level:g} in the whole box; give a higher level"
        )
    origin = 1.0 if closed else 0.0
    return np.concatenate(vertices) - origin, np.concatenate(faces)


def _slabs(slices: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Volumes of at most `size` slices, each of which begins with the last slice of the one before."""
    held: list[np.ndarray] = []
    for one in slices:
        held.append(one)
        if len(held) == size:
            yield np.stack(held)
            held = held[-1:]
    if len(held) > 1:
        yield np.stack(held)


def _padded(slices: Iterator[np.ndarray], level: float) -> Iterator[np.ndarray]:
    empty = level - _EMPTY
    last = None
    for one in slices:
        padded = np.pad(one, 1, constant_values=empty)
        if last is None:
            yield np.full_like(padded, empty)
        yield padded
        last = padded
    if last is not None:
        yield np.full_like(last, empty)


def _march(volume: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The surface within one slab: float64 vertices, the first axis first, and faces."""
    from skimage.measure import marching_cubes

    above = volume - np.float32(level)
    above = np.where(above > 0, np.maximum(above, _CLEARANCE), np.minimum(above, -_CLEARANCE))
    if above.min() > 0 or above.max() < 0:
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    vertices, faces, _, _ = marching_cubes(above, 0.0, gradient_direction="ascent")
    return vertices.astype(np.float64), faces.astype(np.int64)


def _matched(places: np.ndarray, before: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The number that each vertex of a seam got in the slab before."""
    here, there = np.lexsort(places.T), np.lexsort(before.T)
    assert np.array_equal(places[here], before[there]), "the two sides of a seam differ"
    matched = np.empty(len(places), np.int64)
    matched[here] = numbers[there]
    return matched
