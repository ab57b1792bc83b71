"""Digests agree with `sha256sum`, and name files by their place below the folder."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from mimic3d_platform.storage.digests import (
    format_sha256sums,
    parse_sha256sums,
    sha256_of_file,
    sha256_of_files,
    sha256_of_json,
)


def test_files_of_a_folder_are_as_sha256sum_says(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "two words.bin").write_bytes(b"two")
    (tmp_path / "one.bin").write_bytes(b"one")
    (tmp_path / "left out").write_bytes(b"")
    digests = sha256_of_files(tmp_path, leave_out=["left out"])
    assert digests == {
        "deep/two words.bin": hashlib.sha256(b"two").hexdigest(),
        "one.bin": sha256_of_file(tmp_path / "one.bin"),
    }
    listing = format_sha256sums(digests)
    assert parse_sha256sums(listing) == digests
    subprocess.run(["sha256sum", "--check", "--strict"], input=listing, text=True, cwd=tmp_path, check=True)


@pytest.mark.parametrize("line", ["no digest", "0" * 64, "0" * 63 + "  name", "0" * 64 + "  "])
def test_a_listing_that_is_damaged_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not a line of SHA-256 sums"):
        parse_sha256sums(f"{line}\n")


def test_the_order_of_keys_does_not_count() -> None:
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1}) != sha256_of_json({"a": 1})
