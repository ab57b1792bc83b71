"""The files of a registered version, by name, and which of them `pull` fetches."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from mimic3d.checkpoints.file_names import CONFIG, GENERATOR_WEIGHTS, TRAINING_NETWORKS

DIGESTS = "SHA256SUMS"
MODEL_CARD = "README.md"
DATA_CARD = "data_card.md"
LINEAGE = "lineage.json"
PREVIEWS = "previews"
# The generator itself: a version is identified by these. `training.safetensors` is of imported ones.
GENERATOR_FILES = (GENERATOR_WEIGHTS, CONFIG, TRAINING_NETWORKS)
# What only MLflow's clients read: its description of the model, the environment, and a program.
CODE = "code"

_PREVIEW = re.compile(rf"{PREVIEWS}/[\w\-]+\.(png|mp4)")


def is_data(name: str) -> bool:
    """Whether a version's file is data, which `pull` fetches: nothing that a program would execute."""
    return name in (*GENERATOR_FILES, MODEL_CARD, DATA_CARD, LINEAGE) or bool(_PREVIEW.fullmatch(name))


def is_safe(name: str) -> bool:
    """Whether `name` is a relative path that stays below its folder, on every operating system."""
    path = PurePosixPath(name)
    parts = name.split("/")
    return (
        name.isprintable()
        and not path.is_absolute()
        and not any(letter in name for letter in "\\:")
        and all(part not in ("", ".", "..") for part in parts)
    )
