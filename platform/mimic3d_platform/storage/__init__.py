"""Storage: every place by its URI, errors of one line, one retry policy, atomic files, digests."""

from mimic3d_platform.storage.atomic import atomic_file, atomic_write
from mimic3d_platform.storage.errors import StorageError, translate_errors
from mimic3d_platform.storage.files import (
    copy_tree,
    create_bytes,
    delete_tree,
    ensure_bucket,
    exists,
    file_sizes,
    list_files,
    read_bytes,
    write_bytes,
)
from mimic3d_platform.storage.filesystems import arrow_filesystem, open_filesystem
from mimic3d_platform.storage.local_copies import check_writable, read_locally, write_locally
from mimic3d_platform.storage.retries import access, retry
from mimic3d_platform.storage.s3 import s3_client
from mimic3d_platform.storage.uris import (
    Uri,
    absolute,
    is_local,
    is_s3,
    join,
    local_path,
    scheme,
    split_s3,
    without_login,
)

__all__ = [
    "StorageError",
    "Uri",
    "absolute",
    "access",
    "arrow_filesystem",
    "atomic_file",
    "atomic_write",
    "check_writable",
    "copy_tree",
    "create_bytes",
    "delete_tree",
    "ensure_bucket",
    "exists",
    "file_sizes",
    "is_local",
    "is_s3",
    "join",
    "list_files",
    "local_path",
    "open_filesystem",
    "read_bytes",
    "read_locally",
    "retry",
    "s3_client",
    "scheme",
    "split_s3",
    "translate_errors",
    "without_login",
    "write_bytes",
    "write_locally",
]
