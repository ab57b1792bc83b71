"""Downloads registered generators and verifies them. Nothing that is downloaded is executed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mimic3d.checkpoints.file_names import GENERATOR_WEIGHTS
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError, one_line
from mimic3d_platform.models.registry import DIGEST_TAG, FORMAT, FORMAT_TAG, version_of, version_uri
from mimic3d_platform.models.version_files import DIGESTS, GENERATOR_FILES, is_data, is_safe
from mimic3d_platform.settings import default_home
from mimic3d_platform.storage.digests import (
    format_sha256sums,
    parse_sha256sums,
    sha256,
    sha256_of_file,
    sha256_of_files,
)
from mimic3d_platform.tracking.server import client, in_environment, tracking_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

# A download in progress, in the destination; a name that no version's file has.
_PARTIAL = ".pull-"
_LOCK = ".pull.lock"
# A connection that is cut can leave a shorter file without an error, so a wrong digest is tried once more.
_ATTEMPTS = 2


def pull(uri: str, destination: storage.Uri) -> storage.Uri:
    """Downloads a registered generator and verifies the SHA-256 of every file.

    Only data is downloaded: weights, config, cards, lineage, previews. A download that was interrupted
    resumes with the files that are not there yet. Of two into a local folder at once, the second waits for
    the first; into object storage, pull once at a time.

    Args:
        uri: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        destination: a folder, made if need be, local or in object storage. A generator that is there is
            replaced; other files stay.
    Returns:
        The folder, which `mimic3d.checkpoints` loads if it is local.
    Raises:
        UserError: not such a URI, no such model, alias or version, a file that does not match its digest, a
            list of digests that is not the registered one, or MLflow away.
    """
    version = version_of(uri)
    if not storage.is_local(destination):
        storage.check_writable(destination)
        with tempfile.TemporaryDirectory(prefix="mimic3d-pull-") as place:
            return _upload(_pull(version, uri, Path(place)), destination)
    return _pull(version, uri, storage.local_path(destination))


def cached(version: ModelVersion) -> Path:
    """The folder of a version on this machine, `models/` in the folder `MIMIC3D_HOME`, downloaded if need be.

    Raises:
        UserError: as `pull`.
    """
    folder = default_home() / "models" / str(version.tags.get(DIGEST_TAG, "unknown"))
    # A pull ends with the list of digests; what has changed since is downloaded again.
    with contextlib.suppress(UserError):
        verify_folder(folder)
        return folder
    return _pull(version, version_uri(version), folder, keep=True)


def verify_folder(folder: Path) -> list[str]:
    """Verifies the files of a folder that was pulled against its own list; returns their names.

    Raises:
        UserError: there is no list, or a file is missing or another.
    """
    file = folder / DIGESTS
    if not file.is_file():
        raise UserError(f"{folder} has no {DIGESTS}: it was not pulled by `mimic3d`")
    listed = _parse(file.read_bytes(), str(folder))
    for name, digest in listed.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; pull the model again")
        if sha256_of_file(folder / name) != digest:
            raise UserError(f"{folder}: {name} is not the file that was pulled; pull the model again")
    return sorted(listed)


def verify_version(uri: str) -> list[str]:
    """Downloads and verifies all files of a registered version, code included; returns their names.

    Raises:
        UserError: a file is missing or another, the list of digests is not the registered one, or there is a
            file that is not on it.
    """
    version = version_of(uri)
    with tempfile.TemporaryDirectory(prefix="mimic3d-verify-") as place:
        listed = _list_of_digests(version, uri, Path(place))
        found = sha256_of_files(_download(version, "", place), leave_out=[DIGESTS])
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            states = {name in listed: "is not the file that was registered", name not in found: "is missing"}
            raise UserError(f"{uri}: {name} {states.get(True, 'was added after the registration')}")
    return sorted(listed)


def _pull(version: ModelVersion, uri: str, destination: Path, *, keep: bool = False) -> Path:
    """Downloads a version; with `keep`, not if another process has done so while this one waited."""
    with storage.translate_errors(destination, "write"):
        destination.mkdir(parents=True, exist_ok=True)
        with _locked(destination):
            if keep:
                with contextlib.suppress(UserError):
                    verify_folder(destination)
                    return destination
            staging = destination / f"{_PARTIAL}{version.tags.get(DIGEST_TAG, 'unknown')[:16]}"
            for left in destination.glob(f"{_PARTIAL}*"):
                if left != staging and left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)  # Of a pull that was killed.
            staging.mkdir(exist_ok=True)
            try:
                listed = _list_of_digests(version, uri, staging)
                wanted = {name: digest for name, digest in listed.items() if is_data(name)}
                if GENERATOR_WEIGHTS not in wanted:
                    raise UserError(f"{uri} has no {GENERATOR_WEIGHTS}: it is not a generator of mimic3d")
                for name, digest in wanted.items():
                    _download_verified(version, uri, name, digest, staging)
            except UserError:
                if not any(path.is_file() for path in staging.rglob("*")):
                    shutil.rmtree(staging, ignore_errors=True)
                raise
            (staging / DIGESTS).write_text(format_sha256sums(wanted), encoding="utf-8")
            _install(staging, destination, wanted)
            shutil.rmtree(staging)
    return destination


def _list_of_digests(version: ModelVersion, uri: str, folder: Path) -> dict[str, str]:
    """The SHA-256 of the files of a version, from its list, which its tag vouches for.

    Raises:
        UserError: no list, a damaged one, or not the registered one.
    """
    layout = version.tags.get(FORMAT_TAG, str(FORMAT))
    if layout != str(FORMAT):
        raise UserError(f"{uri} was registered by a newer mimic3d (format {layout}): upgrade mimic3d")
    digest = version.tags.get(DIGEST_TAG)
    if digest is None:
        raise UserError(f"{uri} has no tag {DIGEST_TAG}: it was not registered by `mimic3d`")
    data = b""
    for _ in range(_ATTEMPTS):
        _download(version, DIGESTS, str(folder))
        data = (folder / DIGESTS).read_bytes()
        (folder / DIGESTS).unlink()
        if sha256(data) == digest:
            return _parse(data, uri)
    raise UserError(
        f"{uri}: its {DIGESTS} is not the one that was registered (its SHA-256 is not that of the version's "
        f"tag {DIGEST_TAG}); nothing was kept, register the model again"
    )


def _parse(data: bytes, where: str) -> dict[str, str]:
    try:
        listed = parse_sha256sums(data.decode())
    except ValueError as error:  # UnicodeDecodeError is one.
        raise UserError(f"{where}: its {DIGESTS} is damaged ({error}); register the model again") from error
    unsafe = next((name for name in listed if not is_safe(name)), None)
    if unsafe is not None:
        raise UserError(
            f"{where}: its {DIGESTS} names {unsafe!r}, which is not a file below the model's folder; "
            "nothing was kept"
        )
    return listed


def _download_verified(version: ModelVersion, uri: str, name: str, digest: str, folder: Path) -> None:
    file = folder / name
    for _ in range(_ATTEMPTS):
        if file.is_file() and sha256_of_file(file) == digest:
            return
        file.unlink(missing_ok=True)
        _download(version, name, str(folder))
    if file.is_file() and sha256_of_file(file) == digest:
        return
    shutil.rmtree(folder)
    raise UserError(
        f"{uri}: {name} is not the file that was registered; nothing was kept, register the model again"
    )


def _download(version: ModelVersion, name: str, folder: str) -> Path:
    """Downloads one file of a version to its path in `folder`, or all with the name ""; returns the path."""
    import mlflow

    doing = f"download {name or 'the files'} of {version_uri(version)} from"
    with tracking_errors(doing), in_environment() as where:
        place = client().get_model_version_download_uri(version.name, version.version).rstrip("/")
        uri = f"{place}/{name}" if name else place
        try:
            found = mlflow.artifacts.download_artifacts(
                uri, dst_path=folder, tracking_uri=where, registry_uri=where
            )
        except OSError as error:  # MLflow reports a file that is not there in several ways, this one too.
            raise UserError(f"cannot {doing} MLflow: {one_line(error, 300)}") from error
    if not name or Path(found) == Path(folder, name):
        return Path(found)
    # Some kinds of artifact stores drop the folders of a file.
    Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(found, Path(folder, name)))


def _install(staging: Path, destination: Path, files: Mapping[str, str]) -> None:
    """Moves verified files into the destination, in place of the generator that is there.

    The former generator goes first and the new weights come last, so that a process that is killed meanwhile
    leaves a folder that does not load, never files of two generators.
    """
    former = _former_files(str(destination))
    last = [DIGESTS, GENERATOR_WEIGHTS]
    for name in sorted({*former, *files}):
        target = destination / name
        if not target.parent.resolve().is_relative_to(destination.resolve()):
            raise UserError(
                f"{target.parent} is a link that leaves {destination}: remove it, then pull again"
            )
    for name in sorted(former, key=lambda name: name != GENERATOR_WEIGHTS):
        (destination / name).unlink(missing_ok=True)
    for name in [*(name for name in files if name not in last), *last]:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, destination / name)


def _former_files(destination: storage.Uri) -> set[str]:
    """The names of the files that a generator in `destination` may have, by its list where there is one."""
    former = {GENERATOR_WEIGHTS, *GENERATOR_FILES}
    listed = storage.join(destination, DIGESTS)
    with contextlib.suppress(UserError):
        if storage.exists(listed):
            former |= {name for name in _parse(storage.read_bytes(listed), "") if is_data(name)}
    return former


def _upload(folder: Path, destination: storage.Uri) -> storage.Uri:
    """Copies a pulled folder to object storage, the weights last."""
    for name in sorted(_former_files(destination), key=lambda name: name != GENERATOR_WEIGHTS):
        storage.delete_tree(storage.join(destination, name))
    with tempfile.TemporaryDirectory(prefix="mimic3d-pull-") as place:
        weights = shutil.move(folder / GENERATOR_WEIGHTS, place)
        storage.copy_tree(folder, destination)
        storage.copy_tree(Path(weights).parent, destination)
    return destination


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a destination during the block; waits for another process that holds it."""
    path = folder / _LOCK
    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # The process that held it has removed the file: another one may hold its successor.
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
