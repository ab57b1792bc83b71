"""Every place by its URI: local files and object storage, faults of one line, retries, atomic writes."""

from mimic3d_platform.storage.errors import StorageError, translate_errors
from mimic3d_platform.storage.files import (
    copy_tree,
    delete_tree,
    ensure_bucket,
    exists,
    file_sizes,
    filesystem,
    is_s3,
    join,
    list_files,
    local_path,
    read_bytes,
    rooted,
    s3_client,
    split_s3,
    write_bytes,
)
from mimic3d_platform.storage.retries import access, retry

__all__ = [
    "StorageError",
    "access",
    "copy_tree",
    "delete_tree",
    "ensure_bucket",
    "exists",
    "file_sizes",
    "filesystem",
    "is_s3",
    "join",
    "list_files",
    "local_path",
    "read_bytes",
    "retry",
    "rooted",
    "s3_client",
    "split_s3",
    "translate_errors",
    "write_bytes",
]
