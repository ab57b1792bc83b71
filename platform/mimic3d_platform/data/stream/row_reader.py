"""Reading rows of a data set by number, from the cache of shards."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np

from mimic3d.training.order import WINDOW_BYTES
from mimic3d_platform.data.format.manifest import CAMERA_SIZE, REWRITE, Manifest
from mimic3d_platform.data.stream.cache_files import DamagedFileError, PixelFile, RowFile
from mimic3d_platform.data.stream.decode_images import BadImageError, decode_into
from mimic3d_platform.data.stream.shard_cache import CACHE_BYTES, ShardCache, cache_folder
from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

# Files that a reader keeps open, and thereby in the cache: those of a shuffle window.
_OPEN_BYTES, _OPEN_FILES = WINDOW_BYTES, 200


class RowReader:
    """Reads images and cameras of a data set by row number; fetches only the shards of those rows.

    Where the whole decoded set fits in the cache, decoded images are cached too, and each image is decoded
    once on a machine.

    Args:
        cache_bytes: limit of the cache (`data.cache_bytes`).
        folder: of the cache; the settings' when None.
        skip_bad: replace an image that cannot be decoded by the next good one of its shard, and add its row
            to `bad_rows`; if False, it is an error.
        fetch_delay_s: as `ShardCache.open`.
        patience_s: as `ShardCache`.
    Attributes:
        bad_rows: the rows that were replaced so far.
    """

    def __init__(
        self,
        uri: str,
        manifest: Manifest,
        cache_bytes: int = CACHE_BYTES,
        *,
        folder: Path | None = None,
        skip_bad: bool = False,
        fetch_delay_s: float = 0.0,
        patience_s: float | None = None,
    ) -> None:
        self.uri, self.manifest = uri, manifest
        self._skip_bad, self._fetch_delay_s = skip_bad, fetch_delay_s
        self.cache = ShardCache(folder or cache_folder(), cache_bytes, patience_s)
        self.bad_rows: set[int] = set()
        stored = sum(RowFile.most_bytes(shard) for shard in manifest.shards)
        pixels = PixelFile.bytes_of(manifest.count, manifest.resolution)
        self._caches_pixels = stored + pixels <= cache_bytes
        self._open: OrderedDict[int, tuple[RowFile, PixelFile | None]] = OrderedDict()
        self._open_bytes = 0
        self._refetched: set[int] = set()

    def read(
        self, rows: np.ndarray, images: np.ndarray | None = None, cameras: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, 3, R, R) uint8 and cameras (n, 25) float32 of rows, in the given arrays or new ones.

        Args:
            rows: (n,) row numbers in the data set.
        Raises:
            UserError: as `ShardCache`; or an image cannot be decoded and `skip_bad` is False.
        """
        side = self.manifest.resolution
        if images is None or cameras is None:
            images = np.empty((len(rows), 3, side, side), dtype=np.uint8)
            cameras = np.empty((len(rows), CAMERA_SIZE), dtype=np.float32)
        shards, offsets = self.manifest.locate(rows)
        places = zip(shards.tolist(), offsets.tolist(), images, cameras, strict=True)
        for shard, offset, image, camera in places:
            self._read_good(shard, offset, image, camera)
        return images, cameras

    def close(self) -> None:
        """Closes all files."""
        while self._open:
            self._close_oldest()

    def _read_good(self, shard: int, offset: int, image: np.ndarray, camera: np.ndarray) -> None:
        """Reads a row of a shard, or if bad images are skipped, the next good one of the shard."""
        first, rows = int(self.manifest.starts[shard]), self.manifest.shards[shard].rows
        for candidate in (first + (offset + step) % rows for step in range(rows)):
            if candidate in self.bad_rows:
                continue
            try:
                self._read_row(shard, candidate - first, image, camera)
                return
            except BadImageError as error:
                where = f"row {candidate - first} of {self._place(shard)}"
                if not self._skip_bad:
                    raise UserError(
                        f"{where} {error}: {REWRITE}, or skip some bad images with data.max_bad_images"
                    ) from error
                log.warning("%s %s; the next good image of its shard replaces it", where, error)
                self.bad_rows.add(candidate)
        raise UserError(f"{self._place(shard)} has no readable image: {REWRITE}")

    def _read_row(self, shard: int, offset: int, image: np.ndarray, camera: np.ndarray) -> None:
        """Reads one row; if it seems damaged, its shard is fetched once more: the disk may be faulty."""
        try:
            self._read_cached(shard, offset, image, camera)
        except UserError as error:
            raise type(error)(f"{error} (wanted for its row {offset})") from error
        except (BadImageError, DamagedFileError) as error:
            if shard in self._refetched:
                if isinstance(error, BadImageError):
                    raise
                raise BadImageError("cannot be read back from the cache") from error
            self._refetched.add(shard)
            self._close(shard)
            self.cache.discard(self.manifest.shards[shard])
            self._read_row(shard, offset, image, camera)

    def _read_cached(self, shard: int, offset: int, image: np.ndarray, camera: np.ndarray) -> None:
        rows, pixels = self._opened(shard)
        if pixels is None or not pixels.read_into(offset, image):
            decode_into(rows.image(offset), image)
            if pixels is not None:
                pixels.write(offset, image)
        camera[:] = rows.cameras[offset]

    def _opened(self, shard: int) -> tuple[RowFile, PixelFile | None]:
        if shard not in self._open:
            described = self.manifest.shards[shard]
            # Before the new file is opened: it may need the room that the oldest ones take in the cache.
            while self._open and (
                self._open_bytes + described.bytes > _OPEN_BYTES or len(self._open) >= _OPEN_FILES
            ):
                self._close_oldest()
            file = self.cache.open(self.uri, described, fetch_delay_s=self._fetch_delay_s)
            side = self.manifest.resolution
            pixels = self.cache.pixels(described, side) if self._caches_pixels else None
            self._open[shard] = file, pixels
            self._open_bytes += described.bytes
        self._open.move_to_end(shard)
        return self._open[shard]

    def _close_oldest(self) -> None:
        self._close(next(iter(self._open)))

    def _close(self, shard: int) -> None:
        if shard not in self._open:
            return
        for file in self._open.pop(shard):
            if file is not None:
                file.close()
        self._open_bytes -= self.manifest.shards[shard].bytes

    def _place(self, shard: int) -> str:
        from mimic3d_platform import storage

        return storage.join(self.uri, self.manifest.shards[shard].path)
