"""Marching cubes in slabs: only a few slices of the volume are in memory at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

# The least distance of a density from the level, as a share of its neighbours' distance. It keeps vertices by
# as much away from the corners of their cells, where the vertices of several edges would coincide: programs
# that read the mesh would merge them, which tears the surface.
_CLEARANCE = 1e-3
# Outside a closed volume, the density is this many times as far below the level as the sample at the side is
# above it: the surface is a two-hundredth of a cell outside the side.
_OUTSIDE = 200.0
# The least distance of a density from the level where all its neighbours are on it.
_LEAST = 1e-20


class NoSurfaceError(ValueError):
    """The density does not cross the level anywhere in the volume."""


def marching_cubes_in_slabs(
    slices: Iterator[np.ndarray], level: float, *, closed: bool, slab: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """The surface on which a volume has the value `level`, as one mesh (Lewiner et al., 2003).

    Each slab begins with the last slice of the one before. Both compute the same vertices in that slice, to
    the last bit, since the arithmetic is the same: by their positions the two surfaces are joined.

    Args:
        slices: (B, C) float arrays of one size, in order along the volume's first axis.
        level: values above it are inside.
        closed: closes the surface at the sides of the volume.
        slab: slices in memory at a time.
    Returns:
        (V, 3) float64 vertices in units of samples, the first sample at 0, and (F, 3) faces, facing outwards.
    Raises:
        NoSurfaceError: no value is above the level or, unless `closed`, none is below.
    """
    vertices, faces = [], []
    seam: tuple[np.ndarray, np.ndarray] | None = None  # positions and indices of the last slice's vertices
    start, count, highest = 0, 0, -np.inf
    cleared = _cleared(slices, level)
    for volume in _slabs(_padded(cleared) if closed else cleared, slab):
        highest = max(highest, float(volume.max()))
        positions, triangles = _march(volume)
        at_start, at_end = positions[:, 0] == 0, positions[:, 0] == len(volume) - 1
        index = np.full(len(positions), -1, np.int64)
        if seam is not None:
            index[at_start] = _matched(positions[at_start, 1:], *seam)
        new = index < 0
        index[new] = count + np.arange(new.sum())
        seam = positions[at_end, 1:], index[at_end]
        vertices.append(positions[new] + [start, 0, 0])
        faces.append(index[triangles])
        count += int(new.sum())
        start += len(volume) - 1
    if count == 0:
        raise NoSurfaceError(
            f"no surface: the density reaches {highest + level:.3g} in the box, below the level {level:g}; "
            "give a lower level or train for longer"
            if highest <= 0
            else f"no surface: the density is above {level:g} in the whole box; give a higher level"
        )
    origin = 1.0 if closed else 0.0
    return np.concatenate(vertices) - origin, np.concatenate(faces)


def _slabs(slices: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Volumes of at most `size` slices, each beginning with the last slice of the one before."""
    held: list[np.ndarray] = []
    for one in slices:
        held.append(one)
        if len(held) == size:
            yield np.stack(held)
            held = held[-1:]
    if len(held) > 1:
        yield np.stack(held)


def _cleared(slices: Iterator[np.ndarray], level: float) -> Iterator[np.ndarray]:
    """The signed distance of each sample from the level, float32, at least that of `_CLEARANCE`."""
    before: np.ndarray | None = None
    here: np.ndarray | None = None
    for one in itertools.chain(slices, [None]):
        after = None if one is None else one.astype(np.float32) - np.float32(level)
        if here is not None:
            yield _clear(here, [each for each in (before, after) if each is not None])
        before, here = here, after


def _clear(here: np.ndarray, beside: list[np.ndarray]) -> np.ndarray:
    """The signed distances of one slice, moved away from zero; `beside` are its neighbouring slices."""
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
    """The slices with a border of densities below the level on all sides, two more slices included."""
    last: np.ndarray | None = None
    for one in slices:
        empty = np.abs(np.pad(one, 1, mode="edge")) * -np.float32(_OUTSIDE)
        if last is None:
            yield empty
        padded = empty.copy()
        padded[1:-1, 1:-1] = one
        yield padded
        last = empty
    if last is not None:
        yield last


def _march(above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The surface in one slab: float64 vertices and faces."""
    from skimage.measure import marching_cubes

    if above.min() > 0 or above.max() < 0:
        return np.zeros((0, 3)), np.zeros((0, 3), np.int64)
    vertices, faces, _, _ = marching_cubes(above, 0.0, gradient_direction="ascent")
    return vertices.astype(np.float64), faces.astype(np.int64)


def _matched(positions: np.ndarray, before: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The index that each vertex of a seam has in the slab before."""
    here, there = np.lexsort(positions.T), np.lexsort(before.T)
    assert np.array_equal(positions[here], before[there]), "the two sides of a seam differ"
    matched = np.empty(len(positions), np.int64)
    matched[here] = indices[there]
    return matched
