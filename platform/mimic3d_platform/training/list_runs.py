"""Lists the runs below a folder of runs: how far each is, and what it was made of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import ConfigError
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import FOLDER, MANIFEST
from mimic3d_platform.training.result import RESULT, parse_result
from mimic3d_platform.training.run_identity import ORIGIN, read_config_file

_CHECKPOINT = re.compile(rf"/{FOLDER}/(\d+)-[^/]+/{re.escape(MANIFEST)}$")


@dataclass(frozen=True)
class ListedRun:
    """A run of a listing.

    Attributes:
        name: its path below the folder of runs.
        nimg: images consumed at its newest complete checkpoint.
        total_nimg: images of the whole run; 0 where its config cannot be read.
        state: "finished", "not finished", or what is wrong with its config.
        metrics: the last ones of a finished run.
    """

    name: str
    recipe: str
    data: str
    nimg: int
    total_nimg: int
    state: str
    metrics: dict[str, float]


def list_runs(runs_uri: str) -> list[ListedRun]:
    """The runs below `runs_uri`, trials of sweeps included, by name.

    Raises:
        UserError: storage cannot be reached.
    """
    root = storage.join(storage.absolute(runs_uri))
    files = storage.file_sizes(root)
    folders = sorted(
        place.removesuffix(f"/{ORIGIN}")
        for place in files
        if place.endswith(f"/{ORIGIN}") and f"{place.removesuffix(ORIGIN)}{CONFIG}" in files
    )
    newest = {
        folder: max(
            (
                int(match[1])
                for place in files
                if place.startswith(f"{folder}/") and (match := _CHECKPOINT.search(place[len(folder) :]))
            ),
            default=0,
        )
        for folder in folders
    }
    return [_listed(root, folder, newest[folder], f"{folder}/{RESULT}" in files) for folder in folders]


def _listed(root: str, folder: str, nimg: int, finished: bool) -> ListedRun:
    name = folder.removeprefix(f"{root}/")
    uri = storage.join(folder, CONFIG)
    try:
        config = read_config_file(uri)
    except (ConfigError, UserError) as error:
        return ListedRun(name, "", "", nimg, 0, str(error), {})
    metrics: dict[str, float] = {}
    if finished:
        _, metrics = parse_result(storage.read_bytes(storage.join(folder, RESULT))).last_measurement()
    total = config.total_nimg
    state = "finished" if finished else "not finished"
    done = total if finished else nimg
    return ListedRun(name, config.recipe, config.data.uri, done, total, state, metrics)
