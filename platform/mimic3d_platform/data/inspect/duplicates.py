"""Duplicates in a data set: exact ones are the same file, near ones look the same.

Two images are near duplicates if their difference hashes (whether brightness rises between the neighbouring
cells of an 8×8 grid, along rows and along columns: 128 bits) differ in at most 3 bits, their mean colours by
at most 4 of 255, and their 16×16 thumbnails by at most 2 of 255 on average, apart from brightness. That finds
other encodings, other sizes and slight changes of brightness.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mimic3d_platform import storage
from mimic3d_platform.cluster.tasks import run_pieces
from mimic3d_platform.data.format.manifest import REWRITE, Manifest
from mimic3d_platform.data.format.read_shards import row_groups
from mimic3d_platform.errors import UserError

_GRID = 8
_RISE = 4  # of 255: the least difference in brightness that sets a bit
_MOST_BITS = 3
_MOST_COLOUR = 4
_THUMBNAIL = 16
_MOST_THUMBNAIL = 2.0
# Where more images than this share a word of the hash, only neighbours in sorted order are compared:
# comparing all pairs would take quadratic time.
_MOST_PAIRED = 500
_MOST_LISTED = 10

SIGNATURE = np.dtype(
    [("file", "V32"), ("hash", "<u4", 4), ("colour", "u1", 3), ("thumbnail", "u1", _THUMBNAIL**2)]
)


@dataclass(frozen=True)
class DuplicateGroups:
    """Groups of images that are duplicates of one another.

    Attributes:
        groups: number of groups.
        images: number of images beyond the first of each group.
        first: the places (shard and row) of the images of the first groups.
    """

    groups: int
    images: int
    first: list[list[str]]


@dataclass(frozen=True)
class Duplicates:
    """The duplicates of a data set; an exact duplicate is not counted as a near one."""

    exact: DuplicateGroups
    near: DuplicateGroups


def find_duplicates(
    uri: str,
    manifest: Manifest,
    *,
    here: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """Reads every image, as Ray tasks or in this process, and groups duplicates.

    Args:
        on_progress: called with the images read and all images.
    Raises:
        UserError: a shard is damaged, an image cannot be read, or storage or Ray cannot be reached.
    """
    uri = storage.absolute(uri)
    done = 0

    def count(signed: np.ndarray) -> None:
        nonlocal done
        done += len(signed)
        if on_progress is not None:
            on_progress(done, manifest.count)

    parts = run_pieces(sign_shard, len(manifest.shards), uri, manifest, here=here, on_result=count)
    signatures = np.concatenate(parts)
    _, first, group = np.unique(signatures["file"], return_index=True, return_inverse=True)
    exact = _members(first[group])
    near = near_groups(signatures, np.sort(first))
    return Duplicates(_summary(exact, manifest), _summary(near, manifest))


def sign_shard(index: int, uri: str, manifest: Manifest) -> np.ndarray:
    """(rows,) of dtype `SIGNATURE`: the signatures of one shard's images."""
    signatures = []
    shard = manifest.shards[index]
    for first, table in row_groups(uri, shard, ["image"]):
        for row, data in enumerate(table["image"]):
            signatures.append(sign(data.as_py(), f"row {first + row} of {storage.join(uri, shard.path)}"))
    return np.array(signatures, dtype=SIGNATURE)


def sign(data: bytes, where: str) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
    """An image file's SHA-256, difference hash, mean colour and thumbnail."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = image.convert("RGB")
            grey = pixels.convert("L")
            box = Image.Resampling.BOX
            across = np.asarray(grey.resize((_GRID + 1, _GRID), box), dtype=np.int16)
            down = np.asarray(grey.resize((_GRID, _GRID + 1), box), dtype=np.int16)
            small = np.asarray(grey.resize((_THUMBNAIL, _THUMBNAIL), box), dtype=np.uint8).ravel()
            colour = np.asarray(pixels.resize((1, 1), box), dtype=np.uint8).reshape(3)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{where} holds no readable image: {REWRITE}") from error
    bits = np.concatenate([np.diff(across, axis=1).ravel() >= _RISE, np.diff(down, axis=0).ravel() >= _RISE])
    return hashlib.sha256(data).digest(), np.packbits(bits).view("<u4"), colour, small


def near_groups(signatures: np.ndarray, rows: np.ndarray) -> list[list[int]]:
    """Groups of near duplicates among `rows`, each a sorted list of row numbers."""
    hashes, colours = signatures["hash"], signatures["colour"].astype(np.int16)
    parent = np.arange(len(signatures))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    # Two hashes that differ in at most 3 bits have at least one of their 4 words in common.
    for word in range(4):
        order = rows[np.lexsort([*hashes[rows].T, hashes[rows, word]])]
        for left, right in _candidates(hashes[order, word]):
            these, those = order[left], order[right]
            apart = np.bitwise_count(hashes[these] ^ hashes[those]).sum(axis=1)
            tint = np.abs(colours[these] - colours[those]).max(axis=1)
            alike = (apart <= _MOST_BITS) & (tint <= _MOST_COLOUR)
            alike[alike] = _look_alike(signatures, these[alike], those[alike])
            for one, other in zip(these[alike], those[alike], strict=True):
                first, second = sorted((root(int(one)), root(int(other))))
                parent[second] = first
    return _members(np.array([root(int(row)) for row in rows]), rows)


def _look_alike(signatures: np.ndarray, these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """(pairs,) bool: whether the thumbnails are the same apart from brightness and a little noise."""
    change = signatures["thumbnail"][these].astype(np.int16) - signatures["thumbnail"][those]
    return np.abs(change - change.mean(axis=1, keepdims=True)).mean(axis=1) <= _MOST_THUMBNAIL


def _candidates(words: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions in sorted `words` with equal words; only neighbours where many words are equal."""
    starts = np.flatnonzero(np.r_[True, words[1:] != words[:-1]])
    for start, stop in zip(starts, np.r_[starts[1:], len(words)], strict=True):
        if stop - start > _MOST_PAIRED:
            yield np.arange(start, stop - 1), np.arange(start + 1, stop)
        elif stop - start > 1:
            left, right = np.triu_indices(stop - start, 1)
            yield left + start, right + start


def _members(labels: np.ndarray, rows: np.ndarray | None = None) -> list[list[int]]:
    """The groups of two or more equal `labels`, each a list of row numbers."""
    rows = np.arange(len(labels)) if rows is None else rows
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    return [group.tolist() for group in np.split(rows[order], cuts) if len(group) > 1]


def _summary(groups: list[list[int]], manifest: Manifest) -> DuplicateGroups:
    def places(rows: list[int]) -> list[str]:
        shards, offsets = manifest.locate(np.array(rows))
        return [
            f"{manifest.shards[shard].path} row {offset}"
            for shard, offset in zip(shards, offsets, strict=True)
        ]

    return DuplicateGroups(
        groups=len(groups),
        images=sum(len(group) - 1 for group in groups),
        first=[places(group[:_MOST_LISTED]) for group in groups[:_MOST_LISTED]],
    )
