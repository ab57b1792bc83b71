"""The images of `make bench-data`, and the data sets of them in every loader's format, in object storage."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset_writer import DatasetWriter

# Number of images by side: an epoch takes seconds, so that the start of processes does not decide the result.
COUNTS = {64: 8192, 256: 768, 512: 384}
SHARD_BYTES = 8 * 2**20  # in every format that has shards


def photograph(side: int, seed: int) -> np.ndarray:
    """(side, side, 3) uint8: smooth shapes of all sizes, sensor noise; its PNG file is half as large."""
    random = np.random.default_rng(seed)
    total = np.zeros((side, side, 3))
    cells = 4
    while cells <= side // 4:
        coarse = random.uniform(-1, 1, (cells, cells, 3)) / np.sqrt(cells)
        layers = [Image.fromarray(coarse[..., i].astype(np.float32)) for i in range(3)]
        smooth = [np.asarray(layer.resize((side, side), Image.Resampling.BICUBIC)) for layer in layers]
        total += np.stack(smooth, axis=-1)
        cells *= 4
    return (128 + 110 * total + random.normal(0, 2, total.shape)).clip(0, 255).astype(np.uint8)


def make_images(side: int, count: int) -> list[bytes]:
    """The PNG files of `count` images."""
    files = []
    for seed in range(count):
        sink = io.BytesIO()
        Image.fromarray(photograph(side, seed)).save(sink, format="PNG")
        files.append(sink.getvalue())
    return files


def label(index: int) -> list[float]:
    """A camera label that differs between images; what it describes is of no importance."""
    return [*np.eye(4).ravel().tolist(), 1.0, 0.0, 0.5, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0 + index]


def write_formats(files: list[bytes], side: int, uri: str, formats: set[str]) -> None:
    """Writes the same images below `uri` in several formats, each in the folder of its name.

    Args:
        files: PNG files.
        formats: of `parquet`, `mds`, `tar` and `zip`.
    """
    if "parquet" in formats:
        columns = ("image", "camera")
        with DatasetWriter(f"{uri}/parquet", side, {}, columns=columns, shard_bytes=SHARD_BYTES) as writer:
            for index, data in enumerate(files):
                writer.write({"image": data, "camera": label(index)})
    for name, write in (("mds", _write_mds), ("tar", _write_tars), ("zip", _write_zip)):
        if name in formats:
            with tempfile.TemporaryDirectory() as folder:
                write(files, Path(folder) / name)
                storage.copy_tree(folder, uri)


def _write_mds(files: list[bytes], folder: Path) -> None:
    from streaming import MDSWriter

    columns = {"image": "bytes", "camera": "ndarray:float32:25"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for index, data in enumerate(files):
            writer.write({"image": data, "camera": np.array(label(index), dtype=np.float32)})


def _write_tars(files: list[bytes], folder: Path) -> None:
    folder.mkdir()
    each = max(SHARD_BYTES // (len(files[0]) + 2048), 1)
    for start in range(0, len(files), each):
        with tarfile.open(folder / f"{start:08d}.tar", "w") as archive:
            for index in range(start, min(start + each, len(files))):
                camera = np.array(label(index), dtype="<f4").tobytes()
                for suffix, content in (("png", files[index]), ("bin", camera)):
                    entry = tarfile.TarInfo(f"{index:08d}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


def _write_zip(files: list[bytes], folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "dataset.zip", "w", zipfile.ZIP_STORED) as archive:
        names = [f"{index // 1000:05d}/img{index:08d}.png" for index in range(len(files))]
        for name, data in zip(names, files, strict=True):
            archive.writestr(name, data)
        labels = [[name, label(index)] for index, name in enumerate(names)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
