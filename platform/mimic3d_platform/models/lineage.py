"""Where a generator comes from: its run, its data set, what it started from or was imported from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mimic3d.config import Config
from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.manifest_file import read_card
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.version_files import DATA_CARD, LINEAGE
from mimic3d_platform.storage.uris import without_login
from mimic3d_platform.tracking import children_of
from mimic3d_platform.tracking.server import client, tracking_errors, tracking_uri
from mimic3d_platform.tracking.tags import (
    COMMIT_TAG,
    DATA_TAG,
    STAGE1_DIGEST_TAG,
    STAGE1_TAG,
    START_DIGEST_TAG,
    START_TAG,
    VERSION_TAG,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

Lineage: TypeAlias = dict[str, "str | int | list[str] | Lineage | None"]

# Keys of the lineage, by the tags of a run and of its stages that hold their values.
_TAGS = {
    "stage1_checkpoint": STAGE1_TAG,
    "stage1_checkpoint_sha256": STAGE1_DIGEST_TAG,
    "start": START_TAG,
    "start_sha256": START_DIGEST_TAG,
    "code_version": VERSION_TAG,
    "code_commit": COMMIT_TAG,
}


def read_lineage(folder: Path) -> Lineage:
    """The lineage that a folder holds; empty where it holds none.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / LINEAGE
    if not file.is_file():
        return {}
    try:
        lineage = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): pull the model again, or delete it") from error
    if not isinstance(lineage, dict):
        raise UserError(f"{file} is not an object of JSON: pull the model again, or delete it")
    return lineage


def write_lineage(folder: Path, lineage: Mapping[str, object]) -> None:
    """Writes a lineage into a generator's folder."""
    (folder / LINEAGE).write_text(json.dumps(lineage, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def lineage_of_run(run_id: str, config: Config, former: Lineage) -> Lineage:
    """The lineage of a generator that is registered from a run.

    Args:
        former: that of the folder which is registered; it is kept if the generator was made elsewhere.
    """
    with tracking_errors("look up a run in"):
        run = client().get_run(run_id)
    tags = dict(item for found in (*children_of(run_id), run) for item in found.data.tags.items())
    origin: Lineage = {
        "run": run.info.run_name,
        "run_id": run_id,
        "mlflow": without_login(tracking_uri()),
        "recipe": config.recipe,
        **{key: tags[tag] for key, tag in _TAGS.items() if tags.get(tag)},
    }
    if former.get("imported_from"):
        origin["imported_from"] = former["imported_from"]
    if former.get("run_id"):
        origin["previous"] = former
    return origin


def data_of(config: Config, fingerprint: str | None, folder: Path, former: Lineage) -> Lineage:
    """The known facts of a generator's data set; writes the set's card into `folder` if it is readable.

    Args:
        fingerprint: of the data set that the run was trained on; None if no run trained it here.
        former: of the folder which is registered; it is used if the data set cannot be read, or has changed.
    """
    known = former.get("data")
    data: Lineage = dict(known) if isinstance(known, dict) else {}
    uri = config.data.uri
    if not uri:
        return data
    if not data:
        data = {"uri": _public(uri), "fingerprint": fingerprint}
    try:
        manifest = open_dataset(uri)
        card = read_card(uri)
    except UserError:
        return data
    if (data.get("fingerprint") or manifest.fingerprint) != manifest.fingerprint:
        return data  # Another data set is there now.
    (folder / DATA_CARD).write_bytes(card)
    return {
        "uri": _public(uri),
        "fingerprint": manifest.fingerprint,
        "images": manifest.count,
        "identities": manifest.identities,
        "licences": list(manifest.licences),
    }


def trained_by(run: Run) -> str | None:
    """The fingerprint of the data set that a run was trained on."""
    return run.data.tags.get(DATA_TAG) or None


def _public(uri: str) -> str:
    """A data set's URI for others: a local path without the folders above the set, which name a machine."""
    return without_login(uri) if not storage.is_local(uri) else storage.local_path(uri).name
