"""Exporting a data set as a zip that EG3D's tools read: the images and a `dataset.json` of their cameras."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from typing import IO

import pyarrow as pa

from mimic3d_platform import storage
from mimic3d_platform.data.format.camera_labels import shortest_decimals
from mimic3d_platform.data.format.dataset import check_trainable, open_dataset
from mimic3d_platform.data.format.image_files import suffix_of
from mimic3d_platform.data.format.read_shards import camera_array, row_groups
from mimic3d_platform.data.ingest.eg3d import LISTING
from mimic3d_platform.data.ingest.source_files import check_name
from mimic3d_platform.errors import UserError

# One time for all files, so that equal data sets give equal zips.
_TIME = (1980, 1, 1, 0, 0, 0)


def export_dataset(
    uri: str,
    dest_uri: str,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Writes the data set at `uri` as an uncompressed zip, with one shard in memory at a time.

    Images are written byte for byte. A set that was ingested from such a zip gets its names and label numbers
    back; rows without a name are called `00000/img00000000.png` and so on.

    Args:
        dest_uri: path or URI of the zip.
        overwrite: replace an existing file.
        on_progress: called with the images written and all images.
    Returns:
        the number of images.
    Raises:
        UserError: as `open_dataset`; the set has no cameras, two rows have the same name, a shard is damaged,
            or `dest_uri` does not end in .zip, exists already, or cannot be written.
    """
    if not dest_uri.lower().endswith(".zip"):
        raise UserError(f"{dest_uri} is not the name of a zip: give one that ends in .zip")
    manifest = open_dataset(uri)
    check_trainable(manifest, where=uri)
    if storage.exists(dest_uri) and not overwrite:
        raise UserError(f"{dest_uri} exists already: give another name, or use --overwrite")
    columns = [name for name in ("image", "camera", "name", "label") if name in manifest.columns]
    seen: set[str] = set()
    done = 0
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as labels,
        storage.atomic_write(dest_uri) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        for shard in manifest.shards:
            for _, table in row_groups(uri, shard, columns):
                numbers = _label_numbers(table)
                names = table["name"].to_pylist() if "name" in columns else [None] * len(table)
                for name, image, label in zip(names, table["image"], numbers, strict=True):
                    data = image.as_py()
                    name = name or f"{done // 1000:05d}/img{done:08d}{suffix_of(data)}"
                    check_name(name, uri)
                    if name in seen or name == LISTING:
                        raise UserError(f"{uri} has two rows with the name {name}: a zip cannot hold both")
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
    info.external_attr = 0o644 << 16  # Others may read the unpacked files.
    return info


def _label_numbers(table: pa.Table) -> list[list[float]]:
    """The 25 numbers of each row: the source's, or the shortest decimals of the float32."""
    if "label" in table.column_names:
        return table["label"].to_pylist()
    return shortest_decimals(camera_array(table)).tolist()


def _write_listing(archive: zipfile.ZipFile, labels: IO[str]) -> None:
    """Writes `dataset.json`; `labels` is a file of its entries, so that they need not fit in memory."""
    labels.seek(0)
    with archive.open(_member(LISTING), "w", force_zip64=True) as sink:
        sink.write(b'{"labels": [')
        while text := labels.read(2**20):
            sink.write(text.encode())
        sink.write(b"]}")
