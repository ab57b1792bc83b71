"""Local paths for programs that open no URI: what they read is fetched first, what they write is stored last.

Places of this machine are used as they are, without a copy.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mimic3d_platform.storage.files import copy_tree
from mimic3d_platform.storage.filesystems import open_filesystem
from mimic3d_platform.storage.retries import access
from mimic3d_platform.storage.s3 import s3_client
from mimic3d_platform.storage.uris import Uri, is_local, is_s3, local_path, split_s3


@contextlib.contextmanager
def read_locally(uri: Uri) -> Iterator[Path]:
    """A local path of the file or folder at `uri`, during the block; a temporary copy if it is elsewhere.

    Raises:
        UserError: an unknown scheme or no credentials.
        StorageError: nothing is at `uri`, or it cannot be read.
    """
    if is_local(uri):
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="mimic3d-read-") as folder:
        copy = Path(folder, _name(uri))
        copy_tree(uri, copy)
        yield copy


@contextlib.contextmanager
def write_locally(uri: Uri) -> Iterator[Path]:
    """A local path for a file or folder, which is copied to `uri` when the block ends without an error.

    What is known of `uri` is checked before the block begins.

    Raises:
        UserError: an unknown scheme, no credentials, or no such bucket.
        StorageError: `uri` cannot be written.
    """
    if is_local(uri):
        yield local_path(uri)
        return
    check_writable(uri)
    with tempfile.TemporaryDirectory(prefix="mimic3d-write-") as folder:
        made = Path(folder, _name(uri))
        yield made
        copy_tree(made, uri)


def check_writable(uri: Uri) -> None:
    """Raises a `UserError` where it is known beforehand that `uri` cannot be written."""
    if is_local(uri):
        local_path(uri)
    elif is_s3(uri):
        bucket = split_s3(uri)[0]
        access(uri, "write", lambda: s3_client().list_objects_v2(Bucket=bucket, MaxKeys=1))
    else:
        open_filesystem(uri)


def _name(uri: Uri) -> str:
    """The last part of a URI, with its suffix, by which programs choose a format."""
    return str(uri).rstrip("/").rpartition("/")[2]
