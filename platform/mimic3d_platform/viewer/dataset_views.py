"""Cameras and images of a data set, for the frustums that the page shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mimic3d_platform.data.format.dataset import check_trainable, open_dataset
from mimic3d_platform.data.format.image_files import open_image
from mimic3d_platform.data.format.read_rows import read_rows

MAX_VIEWS = 24


@dataclass(frozen=True)
class DatasetView:
    """A row of a data set: its camera label, 25 numbers, and its image, (R, R, 3) uint8."""

    row: int
    camera: tuple[float, ...]
    image: np.ndarray


def dataset_views(uri: str, count: int = MAX_VIEWS) -> list[DatasetView]:
    """`count` rows spread evenly over a data set; all of a smaller one.

    Raises:
        UserError: there is no data set, it has no cameras, or it cannot be read.
    """
    manifest = open_dataset(uri)
    check_trainable(manifest, where=uri)
    rows = np.unique(np.linspace(0, manifest.count - 1, min(count, manifest.count)).round().astype(int))
    found = read_rows(uri, manifest, rows)
    return [
        DatasetView(
            int(row),
            tuple(map(float, camera)),
            np.asarray(open_image(data, f"row {row} of {uri}").convert("RGB")),
        )
        for row, (data, camera) in zip(rows, found, strict=True)
    ]
