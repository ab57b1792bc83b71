"""A shard as the local cache keeps it: any row is found by one read, and nothing else is in memory.

    RowFile     the images' bytes one after the other, as stored in the shard; then cameras, offsets, a foot
    PixelFile   the decoded images, each behind a checksum of its pixels; filled as they are decoded

Files are read by `pread`, not mapped: a file that another program cuts short is an error, not a SIGBUS.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mimic3d_platform.data.format.manifest import CAMERA_SIZE, Shard

_MAGIC = b"m3d-rows"
_FOOT = struct.Struct("<QQI8s")  # rows, bytes of images, CRC-32 of cameras and offsets, magic


class Damaged(Exception):
    """A file of the cache is not what was written."""


def write_rows(file: BinaryIO, images: Sequence[memoryview], cameras: np.ndarray) -> None:
    """Writes a `RowFile`.

    Args:
        images: each row's image file.
        cameras: (rows, 25) float32.
    """
    offsets = np.concatenate([[0], np.cumsum([len(image) for image in images])]).astype("<i8")
    for image in images:
        file.write(image)
    index = cameras.astype("<f4").tobytes() + offsets.tobytes()
    file.write(index)
    file.write(_FOOT.pack(len(images), offsets[-1], zlib.crc32(index), _MAGIC))


class RowFile:
    """An open file of encoded images; while it is open, the cache does not evict it.

    Raises:
        FileNotFoundError: it is not there.
        Damaged: it is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._descriptor = path, os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            self.size = os.fstat(self._descriptor).st_size
            os.utime(path)  # Used now: the least recently used goes first.
            foot = self._read(_FOOT.size, self.size - _FOOT.size)
            self.rows, length, checksum, magic = _FOOT.unpack(foot)
            cameras = self.rows * CAMERA_SIZE * 4
            index = cameras + 8 * (self.rows + 1)
            if magic != _MAGIC or self.size != length + index + _FOOT.size:
                raise Damaged(str(path))
            data = self._read(index, length)
            if zlib.crc32(data) != checksum:
                raise Damaged(str(path))
            self.cameras = np.frombuffer(data[:cameras], dtype="<f4").reshape(-1, CAMERA_SIZE)
            self._offsets = np.frombuffer(data[cameras:], dtype="<i8").tolist()
        except BaseException:
            os.close(self._descriptor)
            raise

    @staticmethod
    def most_bytes(shard: Shard) -> int:
        """What the file of a shard takes at most: stored images are not compressed again."""
        return shard.bytes + shard.rows * (4 * CAMERA_SIZE + 8) + 4096

    def image(self, row: int) -> bytes:
        """The image file of a row."""
        start, stop = self._offsets[row], self._offsets[row + 1]
        return self._read(stop - start, start)

    def close(self) -> None:
        os.close(self._descriptor)

    def _read(self, length: int, offset: int) -> bytes:
        data = os.pread(self._descriptor, length, offset) if offset >= 0 else b""
        if len(data) != length:
            raise Damaged(str(self.path))
        return data


class PixelFile:
    """An open file of decoded images, made if it is not there; many processes may fill it at once.

    Each image lies behind a checksum of its pixels: one that is not there yet, or not whole, is none.
    """

    def __init__(self, path: Path, rows: int, side: int) -> None:
        self.path, self._image = path, 3 * side * side
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        self.size = self.bytes_of(rows, side)
        os.ftruncate(self._descriptor, self.size)
        os.utime(path)
        self._full = False

    @staticmethod
    def bytes_of(rows: int, side: int) -> int:
        return rows * (4 + 3 * side * side)

    def read_into(self, row: int, out: np.ndarray) -> bool:
        """Reads a row's image into `out`, (3, R, R) uint8, contiguous; whether it is there."""
        checksum = bytearray(4)
        read = os.preadv(self._descriptor, [checksum, out], row * (4 + self._image))
        expected = int.from_bytes(checksum, "little")
        return read == 4 + self._image and expected != 0 and expected == _checksum(out)

    def write(self, row: int, pixels: np.ndarray) -> None:
        """Keeps a row's image, (3, R, R) uint8, contiguous; a disk without room ends the keeping, no more."""
        if self._full:
            return
        checksum = _checksum(pixels).to_bytes(4, "little")
        try:
            os.pwritev(self._descriptor, [checksum, pixels], row * (4 + self._image))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._full = True

    def close(self) -> None:
        os.close(self._descriptor)


def _checksum(pixels: np.ndarray) -> int:
    """A CRC-32 that is never 0, which stands for no image."""
    return zlib.crc32(pixels) or 1
