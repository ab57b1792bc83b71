"""A data set as a zip that EG3D's tools read: images as stored, and a `dataset.json` of their cameras."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.data.format.camera_labels import shortest_decimals
from mimic3d_platform.data.format.dataset import open_dataset, require
from mimic3d_platform.data.format.read_shards import row_batches
from mimic3d_platform.data.ingest.image_edits import suffix_of
from mimic3d_platform.data.ingest.source_files import check_name
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.whole_file import whole_file

if TYPE_CHECKING:
    import pyarrow

LISTING = "dataset.json"
# One time for all, so that equal sets make equal zips.
_TIME = (1980, 1, 1, 0, 0, 0)


def export_dataset(
    uri: str,
    dest_uri: str,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the data set at `uri` as an uncompressed zip, a shard in memory at a time.

    Images are the bytes that are stored. What came from such a zip gets its names and numbers back; rows
    without a name are called `00000/img00000000.png` and so on.

    Returns:
        the number of images.
    Raises:
        UserError: as `open_dataset`; the set has no cameras, two rows bear one name, a shard is damaged, or
            `dest_uri` is no .zip, is there already, or cannot be written.
    """
    if not dest_uri.lower().endswith(".zip"):
        raise UserError(f"{dest_uri} is no name of a zip: let it end in .zip")
    manifest = open_dataset(uri)
    require(manifest, where=uri)
    if storage.exists(dest_uri) and not overwrite:
        raise UserError(f"{dest_uri} is there already: give another name, or say --overwrite")
    columns = [name for name in ("image", "camera", "name", "label") if name in manifest.columns]
    seen: set[str] = set()
    done = 0
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as labels,
        whole_file(dest_uri) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        for shard in manifest.shards:
            for _, table in row_batches(uri, shard, columns):
                numbers = _numbers(table)
                names = table["name"].to_pylist() if "name" in columns else [None] * len(table)
                for name, image, label in zip(names, table["image"], numbers, strict=True):
                    data = image.as_py()
                    name = name or f"{done // 1000:05d}/img{done:08d}{suffix_of(data)}"
                    check_name(name, uri)
                    if name in seen or name == LISTING:
                        raise UserError(f"{uri} has two rows of the name {name}: a zip cannot hold both")
                    seen.add(name)
                    archive.writestr(_member(name), data)
                    labels.write(("" if done == 0 else ", ") + json.dumps([name, label]))
                    done += 1
            if on_progress is not None:
                on_progress(done, manifest.count)
        _write_listing(archive, labels)
    return done


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _TIME)
    info.external_attr = 0o644 << 16  # Unpacked files can be read.
    return info


def _numbers(table: pyarrow.Table) -> list[list[float]]:
    """The 25 numbers of each row: those of the source, or the shortest that stand for the float32."""
    if "label" in table.column_names:
        return table["label"].to_pylist()
    cameras = table["camera"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return shortest_decimals(np.asarray(cameras)).reshape(-1, 25).tolist()


def _write_listing(archive: zipfile.ZipFile, labels: IO[str]) -> None:
    labels.seek(0)
    with archive.open(_member(LISTING), "w", force_zip64=True) as sink:
        sink.write(b'{"labels": [')
        while text := labels.read(2**20):
            sink.write(text.encode())
        sink.write(b"]}")
