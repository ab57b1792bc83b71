"""File systems of URIs: fsspec's for every scheme, and pyarrow's for reading Parquet shards.

fsspec's S3 file system (s3fs) works in a thread that does not survive a fork and keeps a session open, so one
is made for each process and for each set of credentials, and none is ever handed to another process.
"""

from __future__ import annotations

import functools
import inspect
import os
from typing import TYPE_CHECKING

from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.s3 import (
    ATTEMPTS,
    CONNECT_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    S3Access,
    client_config,
    s3_access,
)
from mimic3d_platform.storage.uris import Uri, is_local, is_s3, local_path, scheme, split_s3

if TYPE_CHECKING:
    import pyarrow.fs
    from fsspec import AbstractFileSystem


def open_filesystem(uri: Uri) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system that holds `uri`, and the path within it.

    Local places are not opened by it: the standard library serves them.

    Raises:
        UserError: an unknown scheme, one whose package is not installed, no bucket, or no credentials.
    """
    import fsspec.core

    if is_s3(uri):
        bucket, key = split_s3(uri)
        return _s3(_access_to(uri), os.getpid()), f"{bucket}/{key}" if key else bucket
    try:
        files = _other(scheme(uri), os.getpid())
    except UserError as error:
        raise UserError(f"{uri}: {error}") from error
    return files, str(fsspec.core.strip_protocol(os.fspath(uri)))


def arrow_filesystem(uri: Uri) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow file system that holds `uri`, and the path within it; S3 by pyarrow's own client.

    Raises:
        UserError: as `open_filesystem`.
    """
    import pyarrow.fs

    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), str(local_path(uri))
    if not is_s3(uri):
        files, path = open_filesystem(uri)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files)), path
    bucket, key = split_s3(uri)
    access = _access_to(uri)
    options: dict[str, object] = {
        "region": access.region,
        "access_key": access.access_key,
        "secret_key": access.secret_key,
        "session_token": access.session_token,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "request_timeout": REQUEST_TIMEOUT_S,
        "retry_strategy": pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    }
    if access.endpoint:
        protocol, _, host = access.endpoint.rpartition("://")
        options |= {"scheme": protocol or "https", "endpoint_override": host.rstrip("/")}
    if access.ca_bundle:
        options["tls_ca_file_path"] = access.ca_bundle
    return pyarrow.fs.S3FileSystem(**options), f"{bucket}/{key}" if key else bucket


def _access_to(uri: Uri) -> S3Access:
    try:
        return s3_access()
    except UserError as error:
        raise UserError(f"{uri}: {error}") from error


# A process meets few sets of credentials: its own, and new ones when those expire.
@functools.lru_cache(maxsize=4)
def _s3(access: S3Access, pid: int) -> AbstractFileSystem:
    """s3fs with `access`, for the process `pid`."""
    from s3fs import S3FileSystem

    files = S3FileSystem(
        endpoint_url=access.endpoint,
        key=access.access_key,
        secret=access.secret_key,
        token=access.session_token,
        client_kwargs={"region_name": access.region, "verify": access.ca_bundle},
        config_kwargs=client_config(access),
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    files.retries = 1  # botocore makes `ATTEMPTS` of each request.
    return files


@functools.lru_cache(maxsize=4)
def _other(name: str, pid: int) -> AbstractFileSystem:
    """fsspec's file system for the scheme `name`, for the process `pid`."""
    import fsspec

    try:
        kind = fsspec.get_filesystem_class(name)
    except ValueError:
        kind = None
    except ImportError as error:
        raise UserError(f"{name}:// needs a package that is not installed ({error})") from error
    # Servers that need a host and a login, such as ftp://, are not storage that several workers share.
    if kind is None or _requires_options(kind):
        raise UserError(
            f"unknown scheme {name!r}; use s3://bucket/key, a local path, or a scheme of object storage that "
            "fsspec knows"
        )
    return kind(use_listings_cache=False, skip_instance_cache=True)


def _requires_options(kind: type[AbstractFileSystem]) -> bool:
    """Whether a file system cannot be made without arguments."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(each.default is each.empty and each.kind not in variadic for each in parameters)
