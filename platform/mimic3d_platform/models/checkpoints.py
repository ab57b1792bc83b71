"""A run's checkpoints in storage: whole or not at all, held to their digests when read, kept by a policy.

A checkpoint is a folder `<run>/checkpoints/<images>-<token>` whose manifest, the SHA-256 of every file in it,
is written last: one without a manifest is what a process that died has left, and no run goes on from it. The
token is a new one each time, so that two processes that believe to be the same run never write to one folder.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimic3d.config import Config
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
GENERATOR = "generator"
# Metrics of which less is better, by how their names begin; of all others more is.
LESS_IS_BETTER = ("fid", "fd", "kid")


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not those that were written."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that was written to its end."""

    uri: str
    nimg: int
    files: Mapping[str, str] = field(repr=False)
    """The SHA-256 of each file, by its path in the folder."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was said of it when it was stored: fingerprints, metrics, number of workers."""

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    @property
    def generator_uri(self) -> str:
        """The folder of the averaged generator, ready to draw."""
        return storage.join(self.uri, GENERATOR)

    @property
    def digest(self) -> str:
        """One SHA-256 for the whole."""
        return hashlib.sha256(json.dumps(dict(self.files), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class KeepPolicy:
    """Which checkpoints stay: the newest, the best, one every so often, and the one that ends stage 1.

    That last one always stays: trials of stage 2 and runs with other weights fork from it.
    """

    newest: int = 2
    every_nimg: int | None = None
    best: str = ""
    """A metric's name, of those measured where a checkpoint was made."""
    stage1_nimg: int = 0

    @staticmethod
    def of(config: Config) -> KeepPolicy:
        output = config.output
        every = output.keep_every_kimg
        return KeepPolicy(
            output.keep_checkpoints,
            round(every * 1000) if every else None,
            output.keep_best,
            config.stage1_nimg,
        )

    def kept(self, checkpoints: Sequence[StoredCheckpoint]) -> list[StoredCheckpoint]:
        """Those of `checkpoints`, oldest first, that stay."""
        ordered = sorted(checkpoints, key=lambda found: (found.nimg, found.name))
        # Of several at one moment, which attempts of a run leave, one is enough.
        single = list({found.nimg: found for found in ordered}.values())
        stay = {found.uri for found in single[-self.newest :]}
        stay |= {found.uri for found in single if found.nimg == self.stage1_nimg > 0}
        if self.every_nimg:
            stay |= {found.uri for found in single if found.nimg % self.every_nimg == 0}
        measured = [found for found in single if self.best in found.facts.get("metrics", {})]
        if measured:
            least = self.best.startswith(LESS_IS_BETTER)
            best = min(measured, key=lambda found: found.facts["metrics"][self.best] * (1 if least else -1))
            stay.add(best.uri)
        return [found for found in single if found.uri in stay]


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, runs_uri: str, run: str) -> None:
        self.uri = storage.join(runs_uri, run, FOLDER)
        self._known: dict[str, StoredCheckpoint] = {}

    def whole(self) -> list[StoredCheckpoint]:
        """All that were written to their end, oldest first; whether their files still are is not looked at.

        Raises:
            UserError: storage does not answer.
        """
        found = []
        for place in storage.list_files(self.uri, suffix=f"/{MANIFEST}"):
            uri = place.removesuffix(f"/{MANIFEST}")
            if uri in self._known:
                found.append(self._known[uri])
                continue
            try:
                values = json.loads(storage.read_bytes(place))
                self._known[uri] = StoredCheckpoint(uri, values["nimg"], values["files"], values["facts"])
                found.append(self._known[uri])
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
                # Its name says how far it was; that none of its files can be verified is found on reading.
                nimg = uri.rsplit("/", 1)[-1].partition("-")[0]
                found.append(StoredCheckpoint(uri, int(nimg) if nimg.isdigit() else 0, {}))
            except UserError:
                if storage.exists(place):
                    raise
                # Listed, then deleted by the process that trains the run: it keeps newer ones.
        return sorted(found, key=lambda checkpoint: (checkpoint.nimg, checkpoint.name))

    def new_name(self, nimg: int) -> str:
        """A name for a checkpoint at `nimg` that no other has."""
        return f"{nimg:09d}-{secrets.token_hex(3)}"

    def put(self, folder: Path, name: str, nimg: int, facts: Mapping[str, Any]) -> StoredCheckpoint:
        """Stores all files below `folder` as the checkpoint `name`, then the manifest.

        Raises:
            UserError: storage does not answer or has no room; nothing that `whole` would list is left, and
                the same may be tried again.
        """
        uri = storage.join(self.uri, name)
        files = digests(folder)
        storage.copy_tree(folder, uri)
        there = storage.file_sizes(uri)
        for file in files:
            # A store that was killed and has come back may have acknowledged what it does not hold.
            if there.get(storage.join(uri, file)) != (folder / file).stat().st_size:
                raise storage.StorageError(
                    f"cannot write {uri}: storage took {file}, but does not hold all of it", transient=True
                )
        manifest = {"nimg": nimg, "files": files, "facts": dict(facts)}
        storage.write_bytes(storage.join(uri, MANIFEST), json.dumps(manifest, indent=1).encode())
        self._known[uri] = StoredCheckpoint(uri, nimg, files, dict(facts))
        return self._known[uri]

    def fetch(self, checkpoint: StoredCheckpoint, folder: Path) -> Path:
        """Copies a checkpoint into `folder` and holds every file to its digest.

        Raises:
            DamagedCheckpoint: a file is missing, cut short or another; names it.
            UserError: storage does not answer.
        """
        if not checkpoint.files:
            raise DamagedCheckpoint(f"the checkpoint {checkpoint.uri} is damaged: {MANIFEST} is unreadable")
        storage.copy_tree(checkpoint.uri, folder)
        found = digests(folder)
        for name, digest in checkpoint.files.items():
            if found.get(name) != digest:
                size = (folder / name).stat().st_size if name in found else None
                what = "is missing" if size is None else f"is not what was written ({size} bytes now)"
                raise DamagedCheckpoint(f"the checkpoint {checkpoint.uri} is damaged: {name} {what}")
        return folder

    def prune(self, policy: KeepPolicy) -> list[StoredCheckpoint]:
        """Deletes what the policy does not keep; returns what stays, oldest first."""
        there = self.whole()
        kept = policy.kept(there)
        for checkpoint in there:
            if checkpoint not in kept:
                self.delete(checkpoint)
        return kept

    def delete(self, checkpoint: StoredCheckpoint) -> None:
        """Deletes a checkpoint, its manifest first: half of one is none."""
        storage.delete_tree(storage.join(checkpoint.uri, MANIFEST))
        storage.delete_tree(checkpoint.uri)

    def sweep(self) -> list[str]:
        """Deletes what processes that died have left half-written; returns the names of those folders.

        To be called while nothing writes to the run.
        """
        whole = {checkpoint.name for checkpoint in self.whole()}
        parts = {place.removeprefix(f"{self.uri}/").split("/")[0] for place in storage.list_files(self.uri)}
        for name in sorted(parts - whole):
            storage.delete_tree(storage.join(self.uri, name))
        return sorted(parts - whole)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path there, without the manifest's."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
