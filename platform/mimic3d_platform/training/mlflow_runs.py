"""A run in MLflow: one MLflow run, and a child for each of its stages; found again when the run resumes."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from mimic3d.config import Config, fingerprint, to_dict
from mimic3d_platform import tracking
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.tracking.git_commit import commit_of
from mimic3d_platform.tracking.staged_run import StagedRun, StageRun
from mimic3d_platform.tracking.tags import COMMIT_TAG, DATA_TAG, START_DIGEST_TAG, START_TAG, VERSION_TAG
from mimic3d_platform.training.extension import Extension
from mimic3d_platform.training.run_identity import RunOrigin

_NO_COMMIT = "installed"


def start_mlflow_run(
    config: Config,
    name: str,
    origin: RunOrigin,
    manifest: Manifest,
    extensions: Sequence[Extension] = (),
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> StagedRun:
    """Starts a run in MLflow, or finds that of an earlier start again.

    The runs of its stages start with the stages: MLflow keeps the time at which a run is made as its start.

    Raises:
        UserError: MLflow does not answer or refuses.
    """
    commit = _commit()
    all_tags = {
        "mimic3d.config": fingerprint(config),
        DATA_TAG: origin.data,
        VERSION_TAG: metadata.version("mimic3d"),
        COMMIT_TAG: commit,
        "mlflow.source.name": f"mimic3d train {config.recipe}",
        "mlflow.source.type": "PROJECT" if os.environ.get("MIMIC3D_COMMIT") else "LOCAL",
        "mlflow.user": _user(),
        "mimic3d.seed": str(config.seed),
        "mimic3d.perceptual": origin.perceptual,
        "mimic3d.frechet": origin.frechet,
        **(tags or {}),
    }
    if extensions:
        # Parameters of MLflow cannot change: those of the lengths stay as they were at first.
        lengths = [f"{each.kimg:g} -> {each.to_kimg:g} kimg at {each.date}" for each in extensions]
        all_tags["mimic3d.extensions"] = ", ".join(lengths)
    if commit != _NO_COMMIT:
        all_tags["mlflow.source.git.commit"] = commit.removesuffix("-dirty")
    if config.start:
        all_tags |= {START_TAG: config.start, START_DIGEST_TAG: origin.start}
    params = to_dict(config)
    run_id = tracking.start_or_resume_run(tracking.EXPERIMENT, name, params, all_tags, parent_run_id)
    facts = {"images": manifest.count, "resolution": manifest.resolution, "identities": manifest.identities}
    tracking.log_dataset(run_id, config.data.uri, manifest.fingerprint, facts)
    images = {1: config.stage1_nimg, 2: config.total_nimg - config.stage1_nimg}
    stages = {
        f"stage{stage}": StageRun(
            f"{name}-stage{stage}",
            run_id,
            {"stage": stage, **params},
            all_tags,
            config.data.uri,
            manifest.fingerprint,
            facts,
        )
        for stage, count in images.items()
        if count
    }
    return StagedRun(run_id, stages)


def _user() -> str:
    """The name of the user; in a container the user may have a number alone."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _commit() -> str:
    """The commit of the checkout that this code runs from, with `-dirty` if files have changed since."""
    if sent := os.environ.get("MIMIC3D_COMMIT"):  # The sources were sent along with a Ray job.
        return sent
    try:
        return commit_of(Path(__file__).parent)
    except (OSError, subprocess.SubprocessError):
        return _NO_COMMIT
