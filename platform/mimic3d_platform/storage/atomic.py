"""Files that appear whole or not at all: readers see the former content until the last byte is written."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mimic3d_platform.storage.errors import translate_errors
from mimic3d_platform.storage.filesystems import open_filesystem
from mimic3d_platform.storage.s3 import s3_client
from mimic3d_platform.storage.uris import Uri, is_local, is_s3, local_path, split_s3

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PARTIAL_SUFFIX = ".partial"
"""The ending of a local file that is being written; listings leave such files out."""

# S3 takes at most 10 000 parts: they grow as the object does.
_PART_BYTES = 16 * 2**20
_PARTS_OF_A_SIZE = 1000


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces `path` when the block ends without an error.

    It is written beside `path`; missing folders are made.

    Args:
        private: readable by the owner alone (mode 0600); else the mode that the umask gives.
    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not private:  # mkstemp makes files private.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_write(uri: Uri) -> Iterator[BinaryIO]:
    """A binary file to write in one pass, which appears at `uri` when the block ends without an error.

    S3 gets it in parts as it is written; places of other schemes than S3 and the local disk get it at the
    end, from a temporary file.

    Raises:
        StorageError: the place cannot be written.
    """
    with translate_errors(uri, "write"):
        if is_local(uri):
            with atomic_file(local_path(uri)) as file:
                yield file
        elif is_s3(uri):
            with contextlib.closing(_Upload(uri)) as upload:
                yield upload  # type: ignore[misc]
                upload.complete()
        else:
            files, path = open_filesystem(uri)
            with tempfile.NamedTemporaryFile(prefix="mimic3d-") as file:
                yield file  # type: ignore[misc]
                file.flush()
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
                files.put_file(file.name, path)


class _Upload(io.RawIOBase):
    """An object in the making, in parts; closing it before `complete` deletes the parts."""

    def __init__(self, uri: Uri) -> None:
        self._client = s3_client()
        bucket, key = split_s3(uri)
        self._place = {"Bucket": bucket, "Key": key}
        self._upload: str | None = None
        self._held = bytearray()
        self._parts: list[dict[str, str | int]] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: ReadableBuffer) -> int:
        block = memoryview(data).cast("B")
        self._held += block
        self._position += len(block)
        while len(self._held) >= (size := _PART_BYTES << (len(self._parts) // _PARTS_OF_A_SIZE)):
            self._send(bytes(self._held[:size]))
            del self._held[:size]
        return len(block)

    def complete(self) -> None:
        """Sends what is left and makes the object appear."""
        if self._upload is None:
            self._client.put_object(**self._place, Body=bytes(self._held))
            return
        self._send(bytes(self._held))
        self._client.complete_multipart_upload(
            **self._place, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
        )
        self._upload = None

    def close(self) -> None:
        if self._upload is not None:
            with contextlib.suppress(Exception):
                self._client.abort_multipart_upload(**self._place, UploadId=self._upload)
            self._upload = None
        super().close()

    def _send(self, data: bytes) -> None:
        if self._upload is None:
            self._upload = self._client.create_multipart_upload(**self._place)["UploadId"]
        number = len(self._parts) + 1
        sent = self._client.upload_part(**self._place, UploadId=self._upload, PartNumber=number, Body=data)
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})
