"""Fetches what a model's URI names: a registered model, a training checkpoint or a generator's folder.

A URI is `models:/NAME@ALIAS` or `models:/NAME/VERSION`, `builtin:NAME` for a model that comes with the
package, a place in object storage, or a local path.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mimic3d.checkpoints.file_names import GENERATOR_FOLDER
from mimic3d.config import Config
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import MANIFEST, DamagedCheckpoint, require_files
from mimic3d_platform.models.pull import cached, pull
from mimic3d_platform.models.registry import is_registered, version_of
from mimic3d_platform.settings import use_services
from mimic3d_platform.storage.digests import sha256_of_files, sha256_of_json

if TYPE_CHECKING:
    from mimic3d.networks.generator import Generator


BUILTIN = "builtin:"
_BUILTIN_FOLDER = Path(__file__).parent / "builtin"


def builtin_folder(uri: str) -> Path | None:
    """The folder of a model that comes with the package, `builtin:NAME`; None for any other URI.

    Raises:
        UserError: no such model comes with it.
    """
    if not uri.startswith(BUILTIN):
        return None
    known = sorted(folder.name for folder in _BUILTIN_FOLDER.iterdir() if folder.is_dir())
    name = uri.removeprefix(BUILTIN)
    if name not in known:
        raise UserError(f"{uri}: no such model comes with mimic3d; known: {', '.join(known)}")
    return _BUILTIN_FOLDER / name


def fetch(uri: str, folder: Path, digest: str = "") -> Path:
    """Copies what `uri` names into `folder`, and verifies it against its own list of digests.

    Args:
        digest: what `folder_digest` must give of it; "" to take whatever is there.
    Raises:
        UserError: nothing is there, a file is damaged, or the digest is another.
    """
    if is_registered(uri):
        pull(uri, folder)
    else:
        storage.copy_tree(builtin_folder(uri) or uri, folder)
    _verify_manifest(folder, uri)
    if digest and folder_digest(folder) != digest:
        raise UserError(
            f"{uri} has changed since it was first read: put the former one back, or begin anew (a training "
            "under another --name)"
        )
    return folder


def fingerprint(uri: str) -> str:
    """The `folder_digest` of what `uri` names.

    Raises:
        UserError: as `fetch`.
    """
    with tempfile.TemporaryDirectory(prefix="mimic3d-fingerprint-") as folder:
        return folder_digest(fetch(uri, Path(folder)))


def folder_digest(folder: Path) -> str:
    """One SHA-256 of all files below a folder except a checkpoint's manifest."""
    return sha256_of_json(sha256_of_files(folder, leave_out=[MANIFEST]))


def generator_folder(folder: Path) -> Path:
    """The generator's folder within a training checkpoint; any other folder is a generator's itself."""
    inner = folder / GENERATOR_FOLDER
    return inner if inner.is_dir() else folder


@contextlib.contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """The generator's folder that a model's URI names, on this machine during the block.

    Registered generators are kept on this machine, see `pull.cached`; those in object storage are not.

    Raises:
        UserError: as `fetch`.
    """
    if (builtin := builtin_folder(uri)) is not None:
        yield builtin
    elif is_registered(uri):
        use_services()
        yield cached(version_of(uri))
    elif storage.is_local(uri):
        yield generator_folder(storage.local_path(uri))
    else:
        use_services()
        with tempfile.TemporaryDirectory(prefix="mimic3d-model-") as folder:
            yield generator_folder(fetch(uri, Path(folder)))


def load_generator(uri: str) -> tuple[Generator, Config]:
    """The generator that a model's URI names, on the GPU where there is one, and its config.

    Raises:
        UserError: as `fetch`, or the files do not make a generator.
    """
    import torch

    from mimic3d.checkpoints.generator_folder import load_generator

    with local_folder(uri) as folder:
        try:
            generator, config = load_generator(folder)
        except ValueError as error:
            place = f"{uri}/{GENERATOR_FOLDER}" if folder.name == GENERATOR_FOLDER else uri
            raise UserError(str(error).replace(str(folder), place)) from error
    return generator.to("cuda" if torch.cuda.is_available() else "cpu"), config


def _verify_manifest(folder: Path, uri: str) -> None:
    """Raises `UserError` where a training checkpoint's files are not those of its manifest."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    try:
        listed = dict(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"the checkpoint {uri} is damaged: {MANIFEST} is unreadable; name another") from None
    try:
        require_files(folder, listed, uri)
    except DamagedCheckpoint as error:
        raise UserError(f"{error}; name another") from error
