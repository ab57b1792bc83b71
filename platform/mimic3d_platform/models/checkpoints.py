"""The checkpoints of a run in storage: written completely or not at all, and verified when they are read.

A checkpoint is a folder `<run>/checkpoints/<images>-<token>`. Its manifest, written last, lists the SHA-256
of every other file: a folder without one is what a process that died has left, and no run resumes from it.
The token is the time and a random number: two processes that both train the run never write to the same
folder, and of two checkpoints at the same number of images the later one comes last.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimic3d.config import Config
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.digests import sha256_of_files, sha256_of_json

FOLDER = "checkpoints"
MANIFEST = "manifest.json"


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not those that were written."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that was written completely.

    Attributes:
        nimg: images consumed when it was made.
        files: the SHA-256 of each file, by its path in the folder.
        facts: what was stored with it: fingerprints, metrics, the number of workers.
    """

    uri: str
    nimg: int
    files: Mapping[str, str] = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its folder, `<images>-<token>`."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def digest(self) -> str:
        """One SHA-256 of all files."""
        return sha256_of_json(dict(self.files))


@dataclass(frozen=True)
class KeepPolicy:
    """Rules for keeping checkpoints: the newest, the best, one every so many images, and the end of stage 1.

    The end of stage 1 is always kept: trials of a sweep and other runs of stage 2 start from it.

    Attributes:
        newest: how many of the newest.
        every_nimg: those at a multiple of it.
        best: the metric by which the best is chosen, among checkpoints that were measured; "" for none.
        stage1_nimg: images of stage 1; 0 where the run has none.
    """

    newest: int = 2
    every_nimg: int | None = None
    best: str = ""
    stage1_nimg: int = 0

    @staticmethod
    def of(config: Config) -> KeepPolicy:
        """The policy that a run's config asks for."""
        output = config.output
        every = output.keep_every_kimg
        return KeepPolicy(
            output.keep_checkpoints,
            round(every * 1000) if every else None,
            output.keep_best,
            config.stage1_nimg,
        )

    def kept(self, checkpoints: Sequence[StoredCheckpoint]) -> list[StoredCheckpoint]:
        """The checkpoints to keep, oldest first."""
        ordered = sorted(checkpoints, key=lambda checkpoint: (checkpoint.nimg, checkpoint.name))
        # A run that resumed may have several at the same number of images. The last is the one to keep: an
        # earlier one may be damaged, which is why the run resumed from one before it.
        distinct = list({checkpoint.nimg: checkpoint for checkpoint in ordered}.values())
        keep = {checkpoint.uri for checkpoint in distinct[-self.newest :]}
        keep |= {checkpoint.uri for checkpoint in distinct if checkpoint.nimg == self.stage1_nimg > 0}
        if self.every_nimg:
            keep |= {checkpoint.uri for checkpoint in distinct if checkpoint.nimg % self.every_nimg == 0}
        measured = [found for found in distinct if self.best in found.facts.get("metrics", {})]
        if measured:
            from mimic3d.evaluation.registry import lower_is_better  # It imports torch, this module does not.

            sign = 1 if lower_is_better(self.best) else -1
            keep.add(min(measured, key=lambda found: sign * found.facts["metrics"][self.best]).uri)
        return [checkpoint for checkpoint in distinct if checkpoint.uri in keep]


def require_files(folder: Path, files: Mapping[str, str], uri: str) -> None:
    """Verifies the files of a checkpoint, or a part of them, that were copied into a folder.

    Args:
        files: the SHA-256 of each file that must be there, by its path in the folder.
        uri: of the checkpoint, for the error's message.
    Raises:
        DamagedCheckpoint: a file is missing, truncated or changed; the message names the first.
    """
    found = sha256_of_files(folder, leave_out=[MANIFEST])
    for name in sorted(files):
        if found.get(name) != files[name]:
            size = (folder / name).stat().st_size if name in found else None
            what = "is missing" if size is None else f"is not what was written ({size} bytes now)"
            raise DamagedCheckpoint(f"the checkpoint {uri} is damaged: {name} {what}")


class CheckpointStore:
    """The checkpoints of one run, below the folder that holds all runs."""

    def __init__(self, runs_uri: str, run: str) -> None:
        self.uri = storage.join(runs_uri, run, FOLDER)
        self._known: dict[str, StoredCheckpoint] = {}

    def all(self) -> list[StoredCheckpoint]:
        """The checkpoints that have a manifest, oldest first. Their other files are not looked at.

        Raises:
            UserError: storage does not answer.
        """
        found = []
        for manifest_uri in storage.list_files(self.uri, suffix=f"/{MANIFEST}"):
            uri = manifest_uri.removesuffix(f"/{MANIFEST}")
            if uri in self._known:
                found.append(self._known[uri])
                continue
            try:
                manifest = json.loads(storage.read_bytes(manifest_uri))
                checkpoint = StoredCheckpoint(uri, manifest["nimg"], manifest["files"], manifest["facts"])
                found.append(self._known.setdefault(uri, checkpoint))
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
                # Without its list of files it is reported as damaged when it is fetched.
                nimg = uri.rsplit("/", 1)[-1].partition("-")[0]
                found.append(StoredCheckpoint(uri, int(nimg) if nimg.isdigit() else 0, {}))
            except UserError:
                if storage.exists(manifest_uri):
                    raise
                # The process that trains the run has deleted it since it was listed.
        return sorted(found, key=lambda checkpoint: (checkpoint.nimg, checkpoint.name))

    def new_name(self, nimg: int) -> str:
        """A unique name for a checkpoint at `nimg` images; later ones are greater."""
        return f"{nimg:09d}-{time.time_ns() // 1_000_000:x}{secrets.token_hex(2)}"

    def put(self, folder: Path, name: str, nimg: int, facts: Mapping[str, Any]) -> StoredCheckpoint:
        """Stores all files below `folder` as the checkpoint `name`, then its manifest.

        Raises:
            UserError: storage does not answer or has no room. `all` lists nothing of it, and the same call
                can be made again.
        """
        uri = storage.join(self.uri, name)
        files = sha256_of_files(folder, leave_out=[MANIFEST])
        storage.copy_tree(folder, uri)
        sizes = storage.file_sizes(uri)
        for file in files:
            # A store that was killed and started again may have acknowledged what it does not hold.
            if sizes.get(storage.join(uri, file)) != (folder / file).stat().st_size:
                raise storage.StorageError(
                    f"cannot write {uri}: storage took {file}, but does not hold all of it", transient=True
                )
        manifest = {"nimg": nimg, "files": files, "facts": dict(facts)}
        storage.write_bytes(storage.join(uri, MANIFEST), json.dumps(manifest, indent=1).encode())
        self._known[uri] = StoredCheckpoint(uri, nimg, files, dict(facts))
        return self._known[uri]

    def fetch(self, checkpoint: StoredCheckpoint, folder: Path) -> Path:
        """Copies a checkpoint into `folder` and verifies the SHA-256 of every file.

        Raises:
            DamagedCheckpoint: a file is missing, truncated or changed; the message names it.
            UserError: storage does not answer.
        """
        if not checkpoint.files:
            raise DamagedCheckpoint(f"the checkpoint {checkpoint.uri} is damaged: {MANIFEST} is unreadable")
        storage.copy_tree(checkpoint.uri, folder)
        require_files(folder, checkpoint.files, checkpoint.uri)
        return folder

    def prune(self, policy: KeepPolicy) -> list[StoredCheckpoint]:
        """Deletes the checkpoints that the policy does not keep; returns the kept ones, oldest first."""
        stored = self.all()
        kept = policy.kept(stored)
        for checkpoint in stored:
            if checkpoint not in kept:
                self.delete(checkpoint)
        return kept

    def delete(self, checkpoint: StoredCheckpoint) -> None:
        """Deletes a checkpoint, its manifest first, so that what is left of it is not listed."""
        storage.delete_tree(storage.join(checkpoint.uri, MANIFEST))
        storage.delete_tree(checkpoint.uri)

    def delete_incomplete(self) -> list[str]:
        """Deletes the folders without a manifest, which processes that died have left; returns their names.

        Call it only while no process writes to the run.
        """
        complete = {checkpoint.name for checkpoint in self.all()}
        names = {uri.removeprefix(f"{self.uri}/").split("/")[0] for uri in storage.list_files(self.uri)}
        for name in sorted(names - complete):
            storage.delete_tree(storage.join(self.uri, name))
        return sorted(names - complete)
