"""SHA-256 of bytes, files and folders: what identifies shards, checkpoints, models and feature weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path


def sha256(data: bytes) -> str:
    """The SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path, leave_out: Collection[str] = ()) -> dict[str, str]:
    """The SHA-256 of each file below `folder`, by its path there (with `/`).

    Args:
        leave_out: paths, relative to `folder`, of files that are skipped.
    """
    files = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return {name: sha256_of_file(path) for name, path in files.items() if name not in leave_out}


def sha256_of_json(value: object) -> str:
    """One SHA-256 of plain values (mappings, lists, numbers, text), whatever the order of their keys."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def format_sha256sums(digests: Mapping[str, str]) -> str:
    """A listing of files as `sha256sum` prints it, which `sha256sum --check` reads."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def parse_sha256sums(text: str) -> dict[str, str]:
    """The SHA-256 of each file by its name, from a listing as `sha256sum` prints it.

    Raises:
        ValueError: a line is not of that form.
    """
    digests = {}
    for line in text.splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or not name:
            raise ValueError(f"not a line of SHA-256 sums: {line[:100]!r}")
        digests[name] = digest
    return digests
