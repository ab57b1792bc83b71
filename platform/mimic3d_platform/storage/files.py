"""The one factory of file systems: every place is a URI, `s3://bucket/key`, `file:///path` or a plain path.

Object storage is reached with the endpoint and credentials of `settings`; requests have short timeouts. An
error is a `StorageError` of one line that names the place, the cause and the way out; transient ones are
retried first (`retries`).
"""

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import Settings, get_settings
from mimic3d_platform.storage.errors import NO_CREDENTIALS, StorageError, translate_errors
from mimic3d_platform.storage.retries import access

if TYPE_CHECKING:
    import pyarrow.fs

CONNECT_TIMEOUT_S = 3.0
REQUEST_TIMEOUT_S = 30.0
ATTEMPTS = 3

# So often a file is read anew that is being replaced by others.
_READINGS = 5
# A file being written bears this until it is whole; `list_files` does not show it.
_PARTIAL_SUFFIX = ".partial"

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")


def filesystem(uri: str | os.PathLike[str]) -> tuple["pyarrow.fs.FileSystem", str]:
    """Open the file system that holds `uri`.

    Returns:
        The file system and the path within it (`bucket/key` for object storage, an absolute path locally).
    Raises:
        UserError: unknown scheme, no bucket, or object storage without credentials.
    """
    import pyarrow.fs

    if not is_s3(uri):
        return pyarrow.fs.LocalFileSystem(), str(local_path(uri))
    bucket, key = split_s3(uri)
    settings = get_settings()
    options: dict[str, Any] = {
        "region": settings.aws_region,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
        "retry_strategy": pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **_arrow_keys(settings, uri),
    }
    if settings.s3_endpoint:
        scheme, _, host = settings.s3_endpoint.rpartition("://")
        options |= {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        options["tls_ca_file_path"] = bundle
    return pyarrow.fs.S3FileSystem(**options), f"{bucket}/{key}" if key else bucket


def is_s3(uri: str | os.PathLike[str]) -> bool:
    """Whether `uri` names object storage.

    Raises:
        UserError: a scheme that is neither `s3` nor `file`.
    """
    found = _SCHEME.match(os.fspath(uri))
    if found and found[1] not in ("s3", "file"):
        raise UserError(f"{uri}: unknown scheme {found[1]!r}; use s3://bucket/key or a local path")
    return bool(found and found[1] == "s3")


def split_s3(uri: str | os.PathLike[str]) -> tuple[str, str]:
    """The bucket and the key (may be empty) of an `s3://` URI."""
    bucket, _, key = os.fspath(uri).removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{uri}: no bucket is named; write s3://bucket/key")
    return bucket, key.strip("/")


def local_path(uri: str | os.PathLike[str]) -> Path:
    """The absolute path of a local URI."""
    text = os.fspath(uri)
    if not text:
        raise UserError("an empty path was given; name a folder or an s3:// URI")
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    return Path(text).expanduser().absolute()


def rooted(uri: str) -> str:
    """`uri`, a relative path made absolute: workers run in folders of their own. A model or none stays."""
    return uri if not uri or "://" in uri or uri.startswith("models:/") else str(local_path(uri))


def join(uri: str | os.PathLike[str], *parts: str) -> str:
    """`uri` extended by `parts`, with single slashes between them."""
    return "/".join([os.fspath(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str | os.PathLike[str], *, patience_s: float | None = None) -> bool:
    """Whether a file or a folder is at `uri`; in object storage a folder is any key below the prefix."""
    import pyarrow.fs

    def look() -> bool:
        files, path = filesystem(uri)
        kind = files.get_file_info(path).type
        if kind == pyarrow.fs.FileType.Directory and is_s3(uri):
            return next(_keys_below(uri), None) is not None  # A store may remember folders that are empty.
        return kind != pyarrow.fs.FileType.NotFound

    return access(uri, "look at", look, patience_s=patience_s)


def _is_file(uri: str | os.PathLike[str]) -> bool:
    import pyarrow.fs

    def look() -> bool:
        files, path = filesystem(uri)
        return files.get_file_info(path).type == pyarrow.fs.FileType.File

    return access(uri, "read", look)


def read_bytes(uri: str | os.PathLike[str], *, patience_s: float | None = None) -> bytes:
    """The whole content of a file, as it was at one moment.

    pyarrow asks an object for its size, then for ranges of it, and mixes in what replaces it meanwhile. So it
    is read again where it has another ETag at the end than at the beginning.

    Args:
        patience_s: how long transient errors are retried; the settings' if not given. So in all functions of
            this module.
    """

    def read() -> bytes:
        files, path = filesystem(uri)
        for _ in range(_READINGS):
            with files.open_input_file(path) as stream:
                data, read = stream.read(), stream.metadata()
            if not is_s3(uri):
                return data
            with files.open_input_file(path) as stream:
                if stream.metadata() == read:
                    return data
        raise StorageError(f"cannot read {uri}: it is replaced all the time; try again", transient=True)

    return access(uri, "read", read, patience_s=patience_s)


def write_bytes(uri: str | os.PathLike[str], data: bytes, *, patience_s: float | None = None) -> None:
    """Write a file so that readers see all of it or the former content; missing folders are made."""

    def write() -> None:
        if is_s3(uri):
            files, path = filesystem(uri)
            with files.open_output_stream(path) as stream:
                stream.write(data)
        else:
            _write_local(local_path(uri), data)

    access(uri, "write", write, patience_s=patience_s)


def list_files(uri: str | os.PathLike[str], suffix: str = "") -> list[str]:
    """The URIs of all files below a folder whose names end in `suffix`, sorted; none if it is not there."""
    return sorted(place for place in file_sizes(uri) if place.endswith(suffix))


def file_sizes(uri: str | os.PathLike[str]) -> dict[str, int]:
    """The bytes of each file below a folder, by its URI; none if the folder is not there."""
    import pyarrow.fs

    def look() -> dict[str, int]:
        files, root = filesystem(uri)
        found = files.get_file_info(pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True))
        return {
            join(uri, entry.path[len(root) :]): entry.size
            for entry in found
            if entry.type == pyarrow.fs.FileType.File and not entry.path.endswith(_PARTIAL_SUFFIX)
        }

    return access(uri, "list", look)


def copy_tree(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> int:
    """Copy a file to the URI `target`, or every file below a folder into the folder `target`.

    Returns:
        The number of files copied.
    Raises:
        UserError: nothing is at `source`, or either side fails.
    """
    import pyarrow.fs

    names = [""] if _is_file(source) else [item[len(join(source)) :] for item in list_files(source)]
    if not names:
        raise UserError(f"cannot copy {source}: there is nothing there; check the path")
    files, root = filesystem(source)
    with translate_errors(target, "write"):
        target_files, target_root = filesystem(target)
        for name in names:
            path = (target_root.rstrip("/") + "/" + name.strip("/")).rstrip("/")
            if isinstance(target_files, pyarrow.fs.LocalFileSystem):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            copy = functools.partial(
                pyarrow.fs.copy_files,
                (root + name).rstrip("/"),
                path,
                source_filesystem=files,
                destination_filesystem=target_files,
                use_threads=False,
            )
            access(target, "write", copy)
    return len(names)


def delete_tree(uri: str | os.PathLike[str]) -> None:
    """Delete a file, or a folder with all below it; what is not there is no error. A bucket is refused."""
    import pyarrow.fs

    def delete() -> None:
        files, path = filesystem(uri)
        if is_s3(uri):
            bucket, key = split_s3(uri)
            if not key:
                raise UserError(f"{uri}: this names a whole bucket; name a folder within it to delete")
            client = s3_client()
            client.delete_object(Bucket=bucket, Key=key)
            for below in _keys_below(uri):
                client.delete_object(Bucket=bucket, Key=below)
        elif path == os.sep:
            raise UserError(f"{uri}: this names the root folder; name a folder below it to delete")
        elif files.get_file_info(path).type == pyarrow.fs.FileType.Directory:
            files.delete_dir(path)
        else:
            Path(path).unlink(missing_ok=True)

    access(uri, "delete", delete)


def _keys_below(uri: str | os.PathLike[str]) -> Iterator[str]:
    """The keys of all objects in an `s3://` folder."""
    bucket, key = split_s3(uri)
    pages = s3_client().get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=f"{key}/" if key else ""):
        yield from (item["Key"] for item in page.get("Contents", ()))


def s3_client(settings: Settings | None = None) -> Any:
    """A boto3 client for what a file system cannot do (buckets); same endpoint, keys, patience.

    Args:
        settings: where and as whom; those of `get_settings` if not given.
    """
    import boto3
    from botocore.config import Config

    settings = settings or get_settings()
    keys = {name: _reveal(getattr(settings, name)) for name in ("aws_access_key_id", "aws_secret_access_key")}
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.aws_region,
        aws_session_token=_reveal(settings.aws_session_token),
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=REQUEST_TIMEOUT_S,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
        ),
        **keys,
    )


def ensure_bucket(uri: str | os.PathLike[str]) -> None:
    """Make the bucket of an `s3://` URI, or the folder of a local one, unless it is there."""

    def create() -> None:
        if not is_s3(uri):
            local_path(uri).mkdir(parents=True, exist_ok=True)
            return
        filesystem(uri)  # Says in one line that there are no credentials, before a client tries to find some.
        client, bucket = s3_client(), split_s3(uri)[0]
        if bucket not in {item["Name"] for item in client.list_buckets()["Buckets"]}:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=bucket)

    access(uri, "create", create)


def _reveal(secret: Any) -> str | None:
    return secret.get_secret_value() if secret else None


def _arrow_keys(settings: Settings, uri: str | os.PathLike[str]) -> dict[str, str | None]:
    """The key pair for pyarrow; none where Amazon's own chain (profile, instance role) supplies one."""
    if settings.aws_access_key_id and settings.aws_secret_access_key:
        return {
            "access_key": _reveal(settings.aws_access_key_id),
            "secret_key": _reveal(settings.aws_secret_access_key),
            "session_token": _reveal(settings.aws_session_token),
        }
    if settings.aws_access_key_id or settings.aws_secret_access_key:
        missing = "AWS_SECRET_ACCESS_KEY" if settings.aws_access_key_id else "AWS_ACCESS_KEY_ID"
        raise UserError(
            f"{uri}: {missing} is not set though the other half of the key pair is; set both or none"
        )
    import botocore.session

    chain = botocore.session.Session()
    chain.set_config_variable("metadata_service_timeout", 1)
    chain.set_config_variable("metadata_service_num_attempts", 1)
    if chain.get_credentials() is None:
        raise UserError(f"{uri}: {NO_CREDENTIALS}")
    return {}


def _write_local(path: Path, data: bytes) -> None:
    """Write beside `path` and rename, so that a reader or a full disk never meets half a file."""
    if path.exists() and not path.is_file():  # A device such as /dev/full cannot be replaced by a rename.
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PARTIAL_SUFFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files private; this one is the user's data.
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
