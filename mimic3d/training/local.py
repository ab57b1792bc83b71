"""Training data from a local folder of shards, in one process: no Ray, no object storage, no threads.

    shards = LocalShards("cars")
    trainer = Trainer(config, perceptual)
    for images, cameras in shards.batches(config, trainer.nimg):
        trainer.step(images, cameras, shards.cameras, shards.weights)

The order of rows is the platform's: the same seed gives the same batches.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimic3d.cameras import LABEL_SIZE
from mimic3d.config import Config
from mimic3d.training.order import EpochOrder

# A Parquet file with the manifest in its metadata; of older data sets, JSON.
MANIFEST, FORMER_MANIFEST = "_manifest.parquet", "manifest.json"
MANIFEST_KEY = b"mimic3d.manifest"
FORMAT, VERSION = "mimic3d-dataset", 1
CACHE_BYTES = 2**30
_AGAIN = "fetch the data set again"


@dataclass(frozen=True)
class LocalShard:
    """A Parquet file of the set."""

    path: str
    rows: int
    bytes: int
    sha256: str


class LocalShards:
    """A data set in a local folder, as `mimic3d data` writes it.

    Attributes:
        resolution: of its images.
        count: how many there are.
        cameras: (count, 25), all labels.
        weights: (count,), how often each row is to count, or None.
    """

    def __init__(self, folder: str | Path, cache_bytes: int = CACHE_BYTES) -> None:
        """
        Args:
            cache_bytes: of encoded images that are kept in memory.
        Raises:
            ModuleNotFoundError: pyarrow, which reads Parquet, is not installed.
            ValueError: the folder holds no complete data set with cameras, or not what its manifest says.
        """
        self.folder, self._cache_bytes = Path(folder), cache_bytes
        self._parquet = _parquet()
        try:
            content = json.loads(self._manifest())
            self.resolution, self.count = int(content["resolution"]), int(content["count"])
            names = LocalShard.__dataclass_fields__
            self.shards = [LocalShard(**{name: shard[name] for name in names}) for shard in content["shards"]]
            known = (content["format"], content["version"]) == (FORMAT, VERSION)
            columns = content["columns"]
        except FileNotFoundError:
            raise ValueError(f"{self.folder} holds no {MANIFEST}: it is no complete data set") from None
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{self.folder / MANIFEST} is damaged: {_AGAIN}") from None
        if not known or self.count < 1 or "camera" not in columns:
            raise ValueError(
                f"{self.folder} must be a {FORMAT} of version {VERSION} with images that have cameras"
            )
        self._starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        self._groups: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._files: dict[int, Any] = {}
        labels = [self._file(number).read(columns=["camera"]) for number in range(len(self.shards))]
        self.cameras = torch.from_numpy(np.concatenate([_numbers(table, "camera") for table in labels]))
        self.cameras = self.cameras.view(-1, LABEL_SIZE)
        self.weights: Tensor | None = None
        if "weight" in columns:
            tables = [self._file(number).read(columns=["weight"]) for number in range(len(self.shards))]
            self.weights = torch.from_numpy(np.concatenate([_numbers(table, "weight") for table in tables]))

    def _manifest(self) -> bytes:
        """The manifest, JSON."""
        former = self.folder / FORMER_MANIFEST
        if former.exists() and not (self.folder / MANIFEST).exists():
            return former.read_bytes()
        schema = self._parquet.read_schema(self.folder / MANIFEST)
        return bytes((schema.metadata or {})[MANIFEST_KEY])

    def batches(self, config: Config, nimg: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of a run from `nimg` images on to its end: images (B, 3, R, R) uint8, cameras (B, 25).

        Raises:
            ValueError: the images are not of the config's resolution, or one cannot be read.
        """
        if self.resolution != config.model.image_resolution:
            raise ValueError(
                f"{self.folder} has images of {self.resolution}² and model.image_resolution is "
                f"{config.model.image_resolution}: change either"
            )
        order, batch = EpochOrder(self, config.seed), config.schedule.batch
        for position in range(nimg, config.total_nimg, batch):
            rows = order.rows(position, batch)
            images = np.stack([self._image(int(row)) for row in rows])
            yield torch.from_numpy(images), self.cameras[torch.from_numpy(rows)]

    def decoded(self) -> Tensor:
        """(count, 3, R, R) uint8: all images, decoded, for a set that fits in memory; rows as in `cameras`.

        Raises:
            ValueError: an image cannot be read.
        """
        return torch.from_numpy(np.stack([self._image(row) for row in range(self.count)]))

    def _image(self, row: int) -> np.ndarray:
        from PIL import Image

        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        metadata, index, first = self._file(number).metadata, 0, int(self._starts[number])
        while row >= first + metadata.row_group(index).num_rows:
            first, index = first + metadata.row_group(index).num_rows, index + 1
        try:
            with Image.open(io.BytesIO(self._group(number, index)[row - first])) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            place = f"row {row - int(self._starts[number])} of {self.folder / self.shards[number].path}"
            raise ValueError(f"{place} holds no readable image: {_AGAIN}") from error
        if pixels.shape != (self.resolution, self.resolution, 3):
            raise ValueError(f"row {row} of {self.folder} is not {self.resolution}²: {_AGAIN}")
        return pixels.transpose(2, 0, 1)

    def _group(self, number: int, index: int) -> list[bytes]:
        """The encoded images of a row group; what was asked for last is kept."""
        key = number, index
        if key not in self._groups:
            table = self._file(number).read_row_group(index, columns=["image"])
            self._groups[key] = table.column("image").to_pylist()
            held = sum(len(image) for group in self._groups.values() for image in group)
            while held > self._cache_bytes and len(self._groups) > 1:
                held -= sum(map(len, self._groups.popitem(last=False)[1]))
        self._groups.move_to_end(key)
        return self._groups[key]

    def _file(self, number: int) -> Any:
        """The Parquet file, verified once."""
        if number not in self._files:
            shard = self.shards[number]
            path = self.folder / shard.path
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ValueError(f"{path} cannot be read ({error.strerror}): {_AGAIN}") from None
            if digest != shard.sha256:
                raise ValueError(f"{path} is not the file that {MANIFEST} describes: {_AGAIN}")
            self._files[number] = self._parquet.ParquetFile(path)
        return self._files[number]


def _numbers(table: Any, column: str) -> np.ndarray:
    """A column of numbers, or of fixed lists of them, as one flat array."""
    values = table.column(column).combine_chunks()
    flat = values.flatten() if hasattr(values, "flatten") else values
    return np.array(flat.to_numpy(zero_copy_only=False), dtype=np.float32)


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "reading shards needs the package pyarrow: pip install pyarrow", name="pyarrow"
        ) from None
    return pyarrow.parquet
