"""Opening a data set: its manifest, whether training can use it, its cameras and row weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mimic3d_platform import storage
from mimic3d_platform.data.format.manifest import MANIFEST, Manifest
from mimic3d_platform.data.format.manifest_file import read_manifest
from mimic3d_platform.data.format.read_shards import camera_array
from mimic3d_platform.errors import UserError

_PARALLEL_READS = 8


def open_dataset(uri: str) -> Manifest:
    """The manifest of the data set at `uri`.

    Raises:
        UserError: there is no data set, it is empty or half-written, its manifest is damaged or of another
            version, or storage cannot be reached.
    """
    manifest = read_manifest(uri)
    if manifest is not None:
        if manifest.count == 0:
            raise UserError(f"the data set {uri} is empty: write it again with some images")
        return manifest
    if storage.list_files(uri, ".parquet"):
        raise UserError(
            f"the data set {uri} is half-written (no {MANIFEST}): run the command that writes it again"
        )
    if storage.exists(uri):
        raise UserError(
            f"{uri} is empty or not a data set (no {MANIFEST}): make one with `mimic3d data render` or "
            "`mimic3d data ingest`"
        )
    raise UserError(
        f"there is no data set at {uri}: check the URI, or make one with `mimic3d data render` or "
        "`mimic3d data ingest`"
    )


def check_trainable(
    manifest: Manifest, *, resolution: int | None = None, where: str = "the data set"
) -> None:
    """Checks that training can use a data set.

    Args:
        resolution: of the images that the config wants; any when None.
        where: the data set's URI, for error messages.
    Raises:
        UserError: the set has no cameras, or images of another resolution.
    """
    if "camera" not in manifest.columns:
        raise UserError(f"{where} has no cameras, and training needs one for each image: add a camera column")
    if resolution is not None and manifest.resolution != resolution:
        raise UserError(
            f"{where} has images of {manifest.resolution}×{manifest.resolution} and the recipe wants "
            f"{resolution}×{resolution}: give a set of that resolution, or another recipe"
        )


def read_cameras(uri: str) -> np.ndarray:
    """(n, 25) float32: the camera labels of all rows, in the data set's order.

    Raises:
        UserError: as `open_dataset`; or the set has no cameras.
    """
    manifest = open_dataset(uri)
    check_trainable(manifest, where=uri)
    return np.concatenate([camera_array(table) for table in _read_column(uri, manifest, "camera")])


def read_row_weights(uri: str) -> np.ndarray | None:
    """(n,) float32: the column `weight` of all rows, in the data set's order; None if it has none.

    Raises:
        UserError: as `open_dataset`; or a weight is negative or not finite, or all are 0.
    """
    manifest = open_dataset(uri)
    if "weight" not in manifest.columns:
        return None
    weights = pa.concat_tables(_read_column(uri, manifest, "weight"))["weight"].to_numpy()
    wrong = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(wrong):
        raise UserError(
            f"weights of {uri} must be numbers of 0 or more; row {wrong[0]} has {weights[wrong[0]]:g}: "
            "write the set again with other weights"
        )
    if not weights.any():
        raise UserError(f"all weights of {uri} are 0: write the set again with other weights")
    return weights.astype(np.float32)


def _read_column(uri: str, manifest: Manifest, column: str) -> list[pa.Table]:
    """One column of every shard, read by ranges, without the images."""

    def read(place: str) -> pa.Table:
        files, path = storage.arrow_filesystem(place)
        with files.open_input_file(path) as stream:
            return pq.ParquetFile(stream).read(columns=[column])

    places = [storage.join(uri, shard.path) for shard in manifest.shards]
    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        return list(pool.map(lambda place: storage.access(place, "read", lambda: read(place)), places))
