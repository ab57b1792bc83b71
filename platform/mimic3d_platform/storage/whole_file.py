"""A large file written in one pass that appears whole or not at all, on disk or in object storage."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mimic3d_platform import storage

# Object storage takes at most 10 000 parts: they grow as the file does.
_PART_BYTES = 16 * 2**20
_PARTS_OF_A_SIZE = 1000


@contextlib.contextmanager
def whole_file(uri: str) -> Iterator[BinaryIO]:
    """A file to write at `uri`, in place when the block ends without an error and not before.

    Raises:
        UserError: the place cannot be written.
    """
    with storage.translate_errors(uri, "write"):
        if storage.is_s3(uri):
            storage.filesystem(uri)  # Says in one line that there are no credentials.
            with contextlib.closing(_Upload(uri)) as upload:
                yield upload  # type: ignore[misc]
                upload.complete()
        else:
            with _local(storage.local_path(uri)) as file:
                yield file


@contextlib.contextmanager
def _local(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files private; this one is the user's data.
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class _Upload(io.RawIOBase):
    """A multi-part upload; closing one that is not complete takes its parts back."""

    def __init__(self, uri: str) -> None:
        self._client = storage.s3_client()
        bucket, key = storage.split_s3(uri)
        self._place = {"Bucket": bucket, "Key": key}
        self._upload: str | None = None
        self._held = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        self._held += data
        self._position += len(data)
        while len(self._held) >= (size := _PART_BYTES << (len(self._parts) // _PARTS_OF_A_SIZE)):
            self._send(bytes(self._held[:size]))
            del self._held[:size]
        return len(data)

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
