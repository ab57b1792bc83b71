"""Files and folders by URI: look, read, write, list, copy, delete, with errors of one line.

Local places are served by the standard library, all others by fsspec (S3 by s3fs). boto3 copies between S3
and the local disk, in parts and with checksums. An error is a `StorageError` that names the place, the cause
and the way out; transient ones are retried first (`retries`). `patience_s`, where a function takes it, is how
long they are retried; the settings' if not given.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.atomic import PARTIAL_SUFFIX, atomic_file, atomic_write
from mimic3d_platform.storage.errors import StorageError, translate_errors
from mimic3d_platform.storage.filesystems import open_filesystem
from mimic3d_platform.storage.retries import access
from mimic3d_platform.storage.s3 import bucket_options, s3_access, s3_client
from mimic3d_platform.storage.uris import Uri, is_local, is_s3, join, local_path, scheme, split_s3

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_BLOCK_BYTES = 16 * 2**20


def exists(uri: Uri, *, patience_s: float | None = None) -> bool:
    """Whether a file or a folder is at `uri`; in object storage a folder is any key below the prefix."""

    def look() -> bool:
        if is_local(uri):
            return local_path(uri).exists()
        files, path = open_filesystem(uri)
        try:
            found = files.info(path)
        except FileNotFoundError:
            return False
        if is_s3(uri) and found["type"] == "directory":
            return _has_keys(files, uri)  # A store may remember folders that are empty.
        return True

    return access(uri, "look at", look, patience_s=patience_s)


def read_bytes(uri: Uri, *, patience_s: float | None = None) -> bytes:
    """The content of a file, as of one moment: S3 is asked by a single request."""

    def read() -> bytes:
        if is_local(uri):
            return local_path(uri).read_bytes()
        files, path = open_filesystem(uri)
        whole = {"max_concurrency": 1} if is_s3(uri) else {}
        return bytes(files.cat_file(path, **whole))

    return access(uri, "read", read, patience_s=patience_s)


def write_bytes(uri: Uri, data: bytes, *, patience_s: float | None = None) -> None:
    """Write a file so that readers see all of it or the former content; missing folders are made."""

    def write() -> None:
        if is_local(uri):
            _write_local(local_path(uri), data)
            return
        files, path = open_filesystem(uri)
        if not is_s3(uri):
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, data)

    access(uri, "write", write, patience_s=patience_s)


def create_bytes(uri: Uri, data: bytes) -> bool:
    """Write a file unless there is one; of several concurrent writers, one succeeds.

    Other places than S3 and the local disk have no such operation: there, the file is looked for first.

    Returns:
        Whether it was written. It may be False if an attempt was retried that had succeeded: compare the
        content.
    """

    def create() -> bool:
        if is_local(uri):
            return _create_local(local_path(uri), data)
        if is_s3(uri):
            bucket, key = split_s3(uri)
            client = s3_client()
            try:
                client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except client.exceptions.ClientError as error:
                # Another writer was first, or is writing now (409).
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                    return False
                raise
            return True
        files, path = open_filesystem(uri)
        if files.exists(path):
            return False
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, data)
        return True

    return access(uri, "write", create)


def list_files(uri: Uri, suffix: str = "") -> list[str]:
    """The URIs of all files below a folder whose names end in `suffix`, sorted; none if it is not there."""
    return sorted(place for place in file_sizes(uri) if place.endswith(suffix))


def file_sizes(uri: Uri) -> dict[str, int]:
    """The bytes of each file below a folder, by its URI; none if the folder is not there."""

    def look() -> dict[str, int]:
        try:
            sizes = _local_sizes(local_path(uri)) if is_local(uri) else _remote_sizes(uri)
        except FileNotFoundError:
            return {}
        return {
            join(uri, name): size
            for name, size in sizes.items()
            if name and not name.endswith(("/", PARTIAL_SUFFIX))
        }

    return access(uri, "list", look)


def copy_tree(source: Uri, target: Uri) -> int:
    """Copy a file to the URI `target`, or every file below a folder into the folder `target`.

    Returns:
        The number of files copied.
    Raises:
        StorageError: nothing is at `source`, or either side fails.
    """
    names = [""] if _is_file(source) else [place[len(join(source)) :] for place in list_files(source)]
    if not names:
        raise StorageError(f"cannot copy {source}: there is nothing there; check the path")
    for name in names:
        place, copy = (join(uri, name).rstrip("/") for uri in (source, target))
        access(copy, "write", _copier(place, copy))
    return len(names)


def delete_tree(uri: Uri) -> None:
    """Delete a file, or a folder with all below it; what is not there is no error.

    Raises:
        UserError: `uri` is a whole bucket or the root folder.
    """

    def delete() -> None:
        if is_local(uri):
            _delete_local(uri)
        elif is_s3(uri):
            _delete_from_s3(uri)
        else:
            files, path = open_filesystem(uri)
            with contextlib.suppress(FileNotFoundError):
                files.rm(path, recursive=True)

    access(uri, "delete", delete)


def ensure_bucket(uri: Uri) -> None:
    """Make the bucket of an `s3://` URI, or the folder of another, unless it is there."""

    def create() -> None:
        if is_local(uri):
            local_path(uri).mkdir(parents=True, exist_ok=True)
        elif is_s3(uri):
            _ensure_s3_bucket(split_s3(uri)[0])
        else:
            files, path = open_filesystem(uri)
            files.makedirs(path, exist_ok=True)

    access(uri, "create", create)


def _ensure_s3_bucket(bucket: str) -> None:
    """Creates a bucket, unless it is there: keys of one bucket may look at it, but not list all."""
    from botocore.exceptions import ClientError

    client = s3_client()
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket, **bucket_options(s3_access()))


def _is_file(uri: Uri) -> bool:
    def look() -> bool:
        if is_local(uri):
            return local_path(uri).is_file()
        files, path = open_filesystem(uri)
        try:
            return bool(files.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    return access(uri, "read", look)


def _has_keys(files: AbstractFileSystem, uri: Uri) -> bool:
    bucket, key = split_s3(uri)
    prefix = f"{key}/" if key else ""
    answer = files.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return bool(answer.get("Contents"))


def _write_local(path: Path, data: bytes) -> None:
    if path.exists() and not path.is_file():  # A device such as /dev/full cannot be replaced by a rename.
        path.write_bytes(data)
        return
    with atomic_file(path) as file:
        file.write(data)


def _create_local(path: Path, data: bytes) -> bool:
    """Writes a file beside `path` and links it there, which fails if `path` exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        _write_local(partial, data)
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _local_sizes(root: Path) -> dict[str, int]:
    """The bytes of each file below a folder, by its path there; links are followed."""

    def fail(error: OSError) -> None:
        raise error

    sizes = {}
    for folder, _, names in os.walk(root, onerror=fail, followlinks=True):
        for name in names:
            path = Path(folder, name)
            # Whatever disappears meanwhile, such as another writer's partial file, is not there.
            with contextlib.suppress(FileNotFoundError):
                sizes[path.relative_to(root).as_posix()] = path.stat().st_size
    return sizes


def _remote_sizes(uri: Uri) -> dict[str, int]:
    """The bytes of each object below a folder, by its path there; in S3, markers of folders (`…/`) too."""
    files, root = open_filesystem(uri)
    if is_s3(uri):
        found = files.find(root, detail=True)
    else:
        found = {
            info["name"]: info
            for _, _, entries in files.walk(root, detail=True, on_error="raise")
            for info in entries.values()
        }
    root = root.rstrip("/") + "/"
    return {name[len(root) :]: info["size"] for name, info in found.items() if name.startswith(root)}


def _copier(source: str, target: str) -> Callable[[], None]:
    """Returns a function that copies one file."""

    def copy() -> None:
        if not is_local(source) and scheme(source) == scheme(target):
            (files, path), (_, copied) = open_filesystem(source), open_filesystem(target)
            files.cp_file(path, copied)
        elif is_local(source) and is_s3(target):
            bucket, key = split_s3(target)
            s3_client().upload_file(str(local_path(source)), bucket, key)
        else:
            with atomic_write(target) as writer:
                for block in _blocks(source):
                    writer.write(block)

    return copy


def _blocks(uri: str) -> Iterator[bytes]:
    """The content of a file; of S3 by one request, whose checksum boto3 verifies."""
    with translate_errors(uri, "read"):
        opened: BinaryIO
        if is_local(uri):
            opened = local_path(uri).open("rb")
        elif is_s3(uri):
            bucket, key = split_s3(uri)
            opened = s3_client().get_object(Bucket=bucket, Key=key)["Body"]
        else:
            files, path = open_filesystem(uri)
            opened = files.open(path, "rb")
        with contextlib.closing(opened) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block


def _delete_local(uri: Uri) -> None:
    path = local_path(uri)
    if path == Path(path.root):
        raise UserError(f"{uri}: this names the root folder; name a folder below it to delete")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _delete_from_s3(uri: Uri) -> None:
    if not split_s3(uri)[1]:
        raise UserError(f"{uri}: this names a whole bucket; name a folder within it to delete")
    files, path = open_filesystem(uri)
    files.rm_file(path)
    with contextlib.suppress(FileNotFoundError):
        for name in _remote_sizes(uri):
            files.rm_file(f"{path}/{name}")
