"""Opening a data set: its manifest, whether it is fit for training, and its cameras."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.data.format.fetching import camera_array
from mimic3d_platform.data.format.manifest import MANIFEST, Manifest
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    import torch

_AT_ONCE = 8


def open_dataset(uri: str) -> Manifest:
    """The manifest of the data set at `uri`.

    Raises:
        UserError: nothing is there, the set is empty or half-written, its manifest is damaged or of another
            version, or storage is out of reach.
    """
    seal = storage.join(uri, MANIFEST)
    if storage.exists(seal):
        manifest = Manifest.from_json(storage.read_bytes(seal), uri)
        if manifest.count == 0:
            raise UserError(f"the data set {uri} is empty: write it again with some images")
        return manifest
    if storage.list_files(uri, ".parquet"):
        raise UserError(
            f"the data set {uri} is half-written (no {MANIFEST}): run the command that writes it again"
        )
    if storage.exists(uri):
        raise UserError(f"{uri} is empty or no data set (no {MANIFEST}): make one with `mimic3d data render`")
    raise UserError(f"there is no data set at {uri}: check the URI, or make one with `mimic3d data render`")


def require(manifest: Manifest, *, resolution: int | None = None, where: str = "the data set") -> None:
    """Checks that a set is fit for training.

    Raises:
        UserError: it has no cameras, or its images are not of `resolution`.
    """
    if "camera" not in manifest.columns:
        raise UserError(f"{where} has no cameras, and training needs one for each image: add a camera column")
    if resolution is not None and manifest.resolution != resolution:
        raise UserError(
            f"{where} has images of {manifest.resolution}×{manifest.resolution} and the recipe wants "
            f"{resolution}×{resolution}: give a set of that resolution, or another recipe"
        )


def cameras_of(uri: str) -> torch.Tensor:
    """(n, 25) float32: the cameras of all rows, in the set's order.

    Raises:
        UserError: as `open_dataset`; or the set has no cameras.
    """
    return label_pool(uri)[0]


def label_pool(uri: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The cameras of all rows, in the set's order, and how much each weighs in camera balancing.

    Only these columns are read, by ranges.

    Returns:
        (n, 25) float32; and (n,) float32, the set's column `weight`, or None if it has none.
    Raises:
        UserError: as `open_dataset`; the set has no cameras, or a weight is not a number of 0 or more.
    """
    import pyarrow as pa
    import torch

    manifest = open_dataset(uri)
    require(manifest, where=uri)
    columns = [name for name in ("camera", "weight") if name in manifest.columns]
    places = [storage.join(uri, shard.path) for shard in manifest.shards]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tables = list(pool.map(lambda place: _columns(place, columns), places))
    cameras = torch.from_numpy(np.concatenate([camera_array(table) for table in tables]))
    if "weight" not in columns:
        return cameras, None
    weights = pa.concat_tables([table.select(["weight"]) for table in tables])["weight"].to_numpy()
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise UserError(f"{uri} has weights that are no weights (less than 0, not finite, or all 0)")
    return cameras, torch.from_numpy(weights.astype(np.float32))


def _columns(place: str, columns: list[str]) -> pyarrow.Table:
    import pyarrow.parquet as pq

    def read() -> pyarrow.Table:
        files, path = storage.filesystem(place)
        with files.open_input_file(path) as stream:
            return pq.ParquetFile(stream).read(columns=columns)

    return storage.access(place, "read", read)
