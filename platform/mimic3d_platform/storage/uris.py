"""URIs: every place is `s3://bucket/key`, a local path, `file:///path`, or of another scheme fsspec knows."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from mimic3d_platform.errors import UserError

Uri = str | os.PathLike[str]

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
# A URI that a program has taken for a path, or a typing error: no folder of such a name is meant.
_HALF_A_SCHEME = re.compile(r"^(s3(?=:)|[a-zA-Z][a-zA-Z0-9+.-]+(?=:/)):/*(.*)$")


def scheme(uri: Uri) -> str:
    """The scheme of a URI, such as `s3` or `gs`; `file` for a path."""
    found = _SCHEME.match(os.fspath(uri))
    return found[1] if found else "file"


def without_login(uri: Uri) -> str:
    """A URI as it may appear in messages and records: without user name, password, and a web address's query.

    The query of a presigned address is a login too.
    """
    text = os.fspath(uri)
    parts = urlsplit(text)
    if "@" not in parts.netloc and not (parts.query and parts.scheme in ("http", "https")):
        return text
    query = "" if parts.scheme in ("http", "https") else parts.query
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def is_s3(uri: Uri) -> bool:
    """Whether `uri` names S3 object storage."""
    return scheme(uri) == "s3"


def is_local(uri: Uri) -> bool:
    """Whether `uri` names a place in the local file system."""
    return scheme(uri) == "file"


def split_s3(uri: Uri) -> tuple[str, str]:
    """The bucket and the key (may be empty) of an `s3://` URI.

    Raises:
        UserError: no bucket is named.
    """
    bucket, _, key = os.fspath(uri).removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{uri}: no bucket is named; write s3://bucket/key")
    return bucket, key.strip("/")


def local_path(uri: Uri) -> Path:
    """The absolute path of a local URI.

    Raises:
        UserError: `uri` is empty or not local.
    """
    text = os.fspath(uri)
    if not text:
        raise UserError("an empty path was given; name a folder or an s3:// URI")
    if not is_local(uri):
        raise UserError(f"{uri} is not a local path; name a file or folder of this machine")
    if text.startswith("file://"):
        return _path_of_file_uri(text)
    if text.startswith(("models:/", "builtin:")):
        raise UserError(f"{uri} names a model; name a file or folder here, or fetch it with `mimic3d pull`")
    if half := _HALF_A_SCHEME.match(text):
        raise UserError(f"{uri} is neither a path nor a URI; write {half[1]}://{half[2]}, or ./{text}")
    return Path(text).expanduser().absolute()


def _path_of_file_uri(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{uri} names the machine {parts.netloc!r}; write file:///{parts.netloc}{parts.path}")
    return Path(unquote(parts.path))


def absolute(uri: str) -> str:
    """`uri` with a relative path made absolute, since workers run in folders of their own.

    URIs of other schemes, those of models (`models:/…`, `builtin:…`) and the empty string stay as they are.
    """
    of_model = uri.startswith(("models:/", "builtin:"))
    return str(local_path(uri)) if uri and not of_model and is_local(uri) else uri


def join(uri: Uri, *parts: str) -> str:
    """`uri` extended by `parts`, with single slashes between them."""
    return "/".join([os.fspath(uri).rstrip("/"), *(part.strip("/") for part in parts)])
