"""Marching cubes in slabs: the surface of a volume of which only a few slices are in memory at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

# No density is nearer to the level than this share of its neighbours' distance from it. A vertex then keeps
# off the corners of its cell by as much. There the vertices of several edges would fall on one place, and
# programs that read the mesh would join them, which tears it.
_CLEARANCE = 1e-3
# What stands outside of a closed volume is so many times as far below the level as the sample at its side is
# above: the surface lies at the side, a two-hundredth of a cell outside of it.
_EMPTY = 200.0
# So that no sample lies on the level where all its neighbours do.
_LEAST = 1e-20


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
    before: tuple[np.ndarray, np.ndarray] | None = None  # the seam: its vertices' places and their numbers
    start, count, highest = 0, 0, -np.inf
    cleared = _cleared(slices, level)
    for volume in _slabs(_padded(cleared) if closed else cleared, slab):
        highest = max(highest, float(volume.max()))
        found, triangles = _march(volume)
        at_start, at_end = found[:, 0] == 0, found[:, 0] == len(volume) - 1
        number = np.full(len(found), -1, np.int64)
        if before is not None:
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
            f"no surface: the density reaches {highest + level:.3g} in the box, level {level:g} is not below "
            "it; give a lower level or train for longer"
            if highest <= 0
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


def _cleared(slices: Iterator[np.ndarray], level: float) -> Iterator[np.ndarray]:
    """How far above the level each sample is, float32; see `_CLEARANCE`."""
    before: np.ndarray | None = None
    here: np.ndarray | None = None
    for one in itertools.chain(slices, [None]):
        after = None if one is None else one.astype(np.float32) - np.float32(level)
        if here is not None:
            yield _clear(here, [each for each in (before, after) if each is not None])
        before, here = here, after


def _clear(here: np.ndarray, beside: list[np.ndarray]) -> np.ndarray:
    """One slice, between those `beside` it, kept off zero."""
    size = np.abs(here)
    reach = size.copy()
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        np.maximum(reach[first], size[second], out=reach[first])
        np.maximum(reach[second], size[first], out=reach[second])
    for other in beside:
        np.maximum(reach, np.abs(other), out=reach)
    least = np.maximum(reach * np.float32(_CLEARANCE), np.float32(_LEAST))
    return np.where(here > 0, np.maximum(size, least), -np.maximum(size, least))


def _padded(slices: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """With nothing around them."""
    last: np.ndarray | None = None
    for one in slices:
        empty = np.abs(np.pad(one, 1, mode="edge")) * -np.float32(_EMPTY)
        if last is None:
            yield empty
        padded = empty.copy()
        padded[1:-1, 1:-1] = one
        yield padded
        last = empty
    if last is not None:
        yield last


def _march(above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface within one slab: float64 vertices, the first axis first, and faces."""
    from skimage.measure import marching_cubes

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
