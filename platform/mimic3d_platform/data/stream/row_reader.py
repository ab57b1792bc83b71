"""Rows of a data set by number, from the machine's cache of verified shards."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np

from mimic3d.training.order import WINDOW_BYTES
from mimic3d_platform.data.format.manifest import AGAIN, CAMERA_SIZE, Manifest
from mimic3d_platform.data.stream.cache_files import Damaged, PixelFile, RowFile
from mimic3d_platform.data.stream.decode_images import BadImage, decode_into
from mimic3d_platform.data.stream.shard_cache import CACHE_BYTES, ShardCache, cache_folder
from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

# What a reader holds open, and thereby in the cache: a window of the training's order.
_OPEN_BYTES, _OPEN_FILES = WINDOW_BYTES, 200


class RowReader:
    """Images and cameras of a set by row number. Only the shards that are asked for are fetched.

    Decoded images are kept too where the whole set, decoded, fits the cache's bound: each is then decoded
    once on a machine, and read after that.

    Args:
        cache_bytes: the bound of the machine's cache (`data.cache`).
        folder: where it lies; by the settings if not given.
        leave_s: for so long the fetching of a shard is left to others (`ShardCache.open`).
        patience_s: as `ShardCache`.
        skip_bad: whether an image that cannot be decoded is replaced by the next good one of its shard, and
            noted in `bad_rows`; if not, it is an error.
    """

    def __init__(
        self,
        uri: str,
        manifest: Manifest,
        cache_bytes: int = CACHE_BYTES,
        *,
        folder: Path | None = None,
        skip_bad: bool = False,
        leave_s: float = 0.0,
        patience_s: float | None = None,
    ) -> None:
        self.uri, self.manifest, self._skip_bad, self._leave_s = uri, manifest, skip_bad, leave_s
        self.cache = ShardCache(folder or cache_folder(), cache_bytes, patience_s)
        self.bad_rows: set[int] = set()
        self._starts = np.concatenate([[0], np.cumsum([shard.rows for shard in manifest.shards])])
        stored = sum(RowFile.most_bytes(shard) for shard in manifest.shards)
        pixels = PixelFile.bytes_of(manifest.count, manifest.resolution)
        self._keeps_pixels = stored + pixels <= cache_bytes
        self._open: OrderedDict[int, tuple[RowFile, PixelFile | None]] = OrderedDict()
        self._open_bytes = 0
        self._fetched_again: set[int] = set()

    def fetch(
        self, rows: np.ndarray, images: np.ndarray | None = None, cameras: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows' images (n, 3, R, R) uint8 and cameras (n, 25) float32, in the given arrays or new ones.

        Raises:
            UserError: as `ShardCache`; or an image is broken.
        """
        side = self.manifest.resolution
        if images is None or cameras is None:
            images = np.empty((len(rows), 3, side, side), dtype=np.uint8)
            cameras = np.empty((len(rows), CAMERA_SIZE), dtype=np.float32)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        wanted = zip(shards.tolist(), (rows - self._starts[shards]).tolist(), images, cameras, strict=True)
        for shard, offset, image, camera in wanted:
            self._read_good(shard, offset, image, camera)
        return images, cameras

    def close(self) -> None:
        """Lets go of all files."""
        while self._open:
            self._close_oldest()

    def _read_good(self, shard: int, offset: int, image: np.ndarray, camera: np.ndarray) -> None:
        """Reads a row of a shard, or the next of it that is good if bad ones may be skipped."""
        first, rows = int(self._starts[shard]), self.manifest.shards[shard].rows
        for candidate in (first + (offset + step) % rows for step in range(rows)):
            if candidate in self.bad_rows:
                continue
            try:
                return self._read(shard, candidate - first, image, camera)
            except BadImage as error:
                where = f"row {candidate - first} of {self._place(shard)}"
                if not self._skip_bad:
                    raise UserError(
                        f"{where} {error}: {AGAIN}, or let some be skipped with data.max_bad_images"
                    ) from error
                log.warning("%s %s; the next good one of its shard takes its place", where, error)
                self.bad_rows.add(candidate)
        raise UserError(f"{self._place(shard)} has no readable image: {AGAIN}")

    def _read(self, shard: int, offset: int, image: np.ndarray, camera: np.ndarray) -> None:
        """Reads one row; what seems damaged is fetched once more, for the disk may be to blame."""
        try:
            self._read_cached(shard, offset, image, camera)
        except UserError as error:
            raise type(error)(f"{error} (wanted for its row {offset})") from error
        except (BadImage, Damaged) as error:
            if shard in self._fetched_again:
                raise error if isinstance(error, BadImage) else BadImage("cannot be read back") from error
            self._fetched_again.add(shard)
            self._close(shard)
            self.cache.discard(self.manifest.shards[shard])
            self._read(shard, offset, image, camera)

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
            # First the old ones: their room in the cache may be what the new one needs.
            while self._open and (
                self._open_bytes + described.bytes > _OPEN_BYTES or len(self._open) >= _OPEN_FILES
            ):
                self._close_oldest()
            file = self.cache.open(self.uri, described, leave_s=self._leave_s)
            side = self.manifest.resolution
            pixels = self.cache.pixels(described, side) if self._keeps_pixels else None
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
