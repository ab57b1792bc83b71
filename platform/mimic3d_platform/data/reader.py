"""Rows of a data set by number: shards verified once, row groups read by range, images decoded and kept."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.data.order import row_groups
from mimic3d_platform.data.schema import CAMERA_SIZE, Manifest
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_AGAIN = "write the data set again, or copy it anew"


@dataclass(frozen=True)
class _Encoded:
    """A row group in memory: image files, and (rows, 25) float32 cameras."""

    images: pyarrow.Array
    cameras: np.ndarray

    @property
    def size(self) -> int:
        return self.images.nbytes + self.cameras.nbytes


class RowReader:
    """Images and cameras of a set by row number, within a bound of memory.

    Decoded images are kept when all of them fit `cache_bytes`; if not, row groups are kept as stored, the
    least recently used dropped first.
    """

    def __init__(self, uri: str, manifest: Manifest, cache_bytes: int) -> None:
        self.uri, self.manifest, self._limit = uri, manifest, cache_bytes
        self._groups = row_groups(manifest)
        self._starts = np.array([group.start for group in self._groups])
        self._of_shard: dict[int, list[int]] = {}
        for number, group in enumerate(self._groups):
            self._of_shard.setdefault(group.shard, []).append(number)
        self._encoded: OrderedDict[int, _Encoded] = OrderedDict()
        self._held = 0
        self._metadata: dict[int, pyarrow.parquet.FileMetaData] = {}
        side = manifest.resolution
        self._decoded: np.ndarray | None = None
        if manifest.count * 3 * side * side <= cache_bytes:
            self._decoded = np.empty((manifest.count, 3, side, side), dtype=np.uint8)
            self._cameras = np.empty((manifest.count, CAMERA_SIZE), dtype=np.float32)
            self._ready = np.zeros(manifest.count, dtype=bool)

    def fetch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the rows' images (n, 3, R, R) uint8 and cameras (n, 25) float32.

        Raises:
            UserError: a shard is missing, out of reach or not the one of the manifest, or an image is broken.
        """
        side = self.manifest.resolution
        images = np.empty((len(rows), 3, side, side), dtype=np.uint8)
        cameras = np.empty((len(rows), CAMERA_SIZE), dtype=np.float32)
        for place, row in enumerate(rows.tolist()):
            if self._decoded is None:
                images[place], cameras[place] = self._decode(row)
                continue
            if not self._ready[row]:
                self._decoded[row], self._cameras[row] = self._decode(row)
                self._ready[row] = True
                self._drop_if_done(row)
            images[place], cameras[place] = self._decoded[row], self._cameras[row]
        return images, cameras

    def _decode(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        from PIL import Image

        number = self._group_of(row)
        group = self._load(number)
        offset = row - self._groups[number].start
        side = self.manifest.resolution
        try:
            with Image.open(io.BytesIO(group.images[offset].as_py())) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{self._place(row)} holds no readable image: {_AGAIN}") from error
        if pixels.shape != (side, side, 3):
            height, width = pixels.shape[:2]
            raise UserError(
                f"{self._place(row)} holds an image of {width}×{height}, not {side}×{side}: {_AGAIN}"
            )
        return pixels.transpose(2, 0, 1), group.cameras[offset]

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _place(self, row: int) -> str:
        group = self._groups[self._group_of(row)]
        first = self._groups[self._of_shard[group.shard][0]].start
        return f"row {row - first} of {self._shard_uri(group.shard)}"

    def _shard_uri(self, shard: int) -> str:
        return storage.join(self.uri, self.manifest.shards[shard].path)

    def _load(self, number: int) -> _Encoded:
        if number not in self._encoded:
            group = self._groups[number]
            if group.shard in self._metadata:
                self._keep(number, self._read_range(group.shard, group.index))
            else:
                self._open_shard(group.shard, number)
        self._encoded.move_to_end(number)
        return self._encoded[number]

    def _open_shard(self, shard: int, wanted: int) -> None:
        """Reads a shard whole for the first time, verifies it, and keeps what of it memory allows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        expected, place = self.manifest.shards[shard], self._shard_uri(shard)
        data = storage.read_bytes(place)
        if len(data) != expected.bytes:
            raise UserError(f"{place} has {len(data)} bytes and the manifest says {expected.bytes}: {_AGAIN}")
        if hashlib.sha256(data).hexdigest() != expected.sha256:
            raise UserError(
                f"{place} is not the file that the manifest describes (SHA-256 differs): {_AGAIN}"
            )
        file = pq.ParquetFile(pa.BufferReader(data))
        numbers = self._of_shard[shard]
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        if sizes != [self._groups[number].rows for number in numbers]:
            raise UserError(f"{place} has row groups of a size that the format does not allow: {_AGAIN}")
        self._metadata[shard] = file.metadata
        for number in [other for other in numbers if other != wanted] + [wanted]:
            if number == wanted or self._held < self._limit:
                self._keep(number, _encoded(file.read_row_group(self._groups[number].index, _COLUMNS)))

    def _read_range(self, shard: int, index: int) -> _Encoded:
        import pyarrow.parquet as pq

        place = self._shard_uri(shard)
        with storage.translate_errors(place, "read"):
            files, path = storage.filesystem(place)
            with files.open_input_file(path) as stream:
                file = pq.ParquetFile(stream, metadata=self._metadata[shard])
                return _encoded(file.read_row_group(index, _COLUMNS))

    def _keep(self, number: int, group: _Encoded) -> None:
        self._encoded[number] = group
        self._held += group.size
        while self._held > self._limit and len(self._encoded) > 1:
            self._held -= self._encoded.popitem(last=False)[1].size

    def _drop_if_done(self, row: int) -> None:
        number = self._group_of(row)
        group = self._groups[number]
        if self._ready[group.start : group.start + group.rows].all():
            self._held -= self._encoded.pop(number).size


_COLUMNS = ["image", "camera"]


def _encoded(table: pyarrow.Table) -> _Encoded:
    # A copy: a slice of the shard's buffer would keep the whole shard in memory.
    import pyarrow as pa

    images = pa.concat_arrays([pa.array([], pa.binary()), *table.column("image").chunks])
    return _Encoded(images, camera_array(table))


def camera_array(table: pyarrow.Table) -> np.ndarray:
    """(rows, 25) float32 from a table's `camera` column."""
    column = table.column("camera").combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, CAMERA_SIZE).copy()
