"""What a run starts from (`config.start`): the folder of a training checkpoint or a generator, or a model."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import MANIFEST, digests


def fetch(uri: str, folder: Path, digest: str = "") -> Path:
    """Copies what `uri` names into `folder`, held to its own list of digests, and to `digest` if given.

    Raises:
        UserError: nothing is there, it is damaged, or no longer what it was.
    """
    if uri.startswith("models:/"):
        from mimic3d_platform.models.registry import pull

        pull(uri, folder)
    else:
        storage.copy_tree(uri, folder)
    _verify(folder, uri)
    if digest and digest_of(folder) != digest:
        raise UserError(
            f"the start {uri} is no longer what it was when the run began: put the former one back, or give "
            "the run another --name"
        )
    return folder


def fingerprint(uri: str) -> str:
    """One SHA-256 of what `uri` names.

    Raises:
        UserError: as `fetch`.
    """
    with tempfile.TemporaryDirectory(prefix="mimic3d-start-") as folder:
        return digest_of(fetch(uri, Path(folder)))


def digest_of(folder: Path) -> str:
    """One SHA-256 of all files below a folder, but for the manifest."""
    return hashlib.sha256(json.dumps(digests(folder), sort_keys=True).encode()).hexdigest()


def _verify(folder: Path, uri: str) -> None:
    """A training checkpoint is held to its manifest."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    try:
        listed = dict(json.loads(manifest.read_text())["files"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"the start {uri} is damaged: {MANIFEST} is unreadable; name another") from None
    found = digests(folder)
    wrong = sorted(name for name, digest in listed.items() if found.get(name) != digest)
    if wrong:
        raise UserError(f"the start {uri} is damaged: {wrong[0]} is not what was written; name another")
