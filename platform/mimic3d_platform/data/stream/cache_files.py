"""The files of the local cache, two for each shard; a row is read from disk by itself.

    RowFile     the image files one after the other; then cameras, offsets and a footer
    PixelFile   the decoded images, each after a checksum of its pixels; written as images are decoded

Files are read by `pread` and not mapped: a file that another program truncates is an error, not a SIGBUS.
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
_FOOTER = struct.Struct("<QQI8s")  # rows, bytes of images, CRC-32 of cameras and offsets, magic


class DamagedFileError(Exception):
    """A file of the cache is damaged or truncated."""


def write_rows(file: BinaryIO, images: Sequence[memoryview], cameras: np.ndarray) -> None:
    """Writes a `RowFile`.

    Args:
        images: each row's image file, encoded.
        cameras: (rows, 25) float32.
    """
    offsets = np.concatenate([[0], np.cumsum([len(image) for image in images])]).astype("<i8")
    for image in images:
        file.write(image)
    index = cameras.astype("<f4").tobytes() + offsets.tobytes()
    file.write(index)
    file.write(_FOOTER.pack(len(images), offsets[-1], zlib.crc32(index), _MAGIC))


class RowFile:
    """An open file of encoded images and cameras; the cache does not evict it while it is open.

    Attributes:
        size: bytes of the file.
        cameras: (rows, 25) float32.
    Raises:
        FileNotFoundError: it does not exist.
        DamagedFileError: it is damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._descriptor = path, os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            self.size = os.fstat(self._descriptor).st_size
            os.utime(path)  # the time of the last use: the least recently used files are evicted first
            footer = self._read(_FOOTER.size, self.size - _FOOTER.size)
            self.rows, length, checksum, magic = _FOOTER.unpack(footer)
            cameras = self.rows * CAMERA_SIZE * 4
            index = cameras + 8 * (self.rows + 1)
            if magic != _MAGIC or self.size != length + index + _FOOTER.size:
                raise DamagedFileError(str(path))
            data = self._read(index, length)
            if zlib.crc32(data) != checksum:
                raise DamagedFileError(str(path))
            self.cameras = np.frombuffer(data[:cameras], dtype="<f4").reshape(-1, CAMERA_SIZE)
            self._offsets = np.frombuffer(data[cameras:], dtype="<i8").tolist()
        except BaseException:
            os.close(self._descriptor)
            raise

    @staticmethod
    def most_bytes(shard: Shard) -> int:
        """An upper bound of the file's size for a shard, whose images are compressed already."""
        return shard.bytes + shard.rows * (4 * CAMERA_SIZE + 8) + 4096

    def image(self, row: int) -> bytes:
        """The encoded image file of a row."""
        start, stop = self._offsets[row], self._offsets[row + 1]
        return self._read(stop - start, start)

    def close(self) -> None:
        """Closes the file; the cache may then evict it."""
        os.close(self._descriptor)

    def _read(self, length: int, offset: int) -> bytes:
        data = os.pread(self._descriptor, length, offset) if offset >= 0 else b""
        if len(data) != length:
            raise DamagedFileError(str(self.path))
        return data


class PixelFile:
    """An open file of decoded images, created if needed; several processes may write to it at once.

    Each image follows a checksum of its pixels, so that one that is missing or incomplete is recognised.
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
        """The size of the file for a number of images of side×side."""
        return rows * (4 + 3 * side * side)

    def read_into(self, row: int, out: np.ndarray) -> bool:
        """Reads a row's image into `out`, (3, R, R) uint8, contiguous; False if the file lacks it."""
        checksum = bytearray(4)
        read = os.preadv(self._descriptor, [checksum, out.data], row * (4 + self._image))
        expected = int.from_bytes(checksum, "little")
        return read == 4 + self._image and expected != 0 and expected == _checksum(out)

    def write(self, row: int, pixels: np.ndarray) -> None:
        """Writes a row's image, (3, R, R) uint8, contiguous; if the disk is full, nothing is written."""
        if self._full:
            return
        checksum = _checksum(pixels).to_bytes(4, "little")
        try:
            os.pwritev(self._descriptor, [checksum, pixels.data], row * (4 + self._image))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._full = True

    def close(self) -> None:
        """Closes the file; the cache may then evict it."""
        os.close(self._descriptor)


def _checksum(pixels: np.ndarray) -> int:
    """A CRC-32, but never 0, which means that there is no image."""
    return zlib.crc32(pixels.data) or 1
