"""A run in MLflow: one run, a child for each of its stages; found again, never made twice."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from mimic3d.config import Config, fingerprint, to_dict
from mimic3d_platform import tracking
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.runs import Origin


def start(
    config: Config,
    name: str,
    origin: Origin,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The run and a child for each stage, found again if an earlier start made them.

    Returns:
        their ids: "run", and "stage1" and "stage2" as the config has them.
    """
    own = {
        "mimic3d.config": fingerprint(config),
        "mimic3d.data": origin.data,
        "mimic3d.version": metadata.version("mimic3d"),
        "mimic3d.commit": _commit(),
        "mimic3d.seed": str(config.seed),
        "mimic3d.perceptual": origin.perceptual,
        "mimic3d.frechet": origin.frechet,
        **(tags or {}),
    }
    if config.start:
        own |= {"mimic3d.start": config.start, "mimic3d.start.sha256": origin.start}
    parent = tracking.start_or_resume_run(tracking.EXPERIMENT, name, to_dict(config), own, parent_run_id)
    ids = {"run": parent}
    lengths = {1: config.stage1_nimg, 2: config.total_nimg - config.stage1_nimg}
    for stage in (stage for stage, images in lengths.items() if images):
        ids[f"stage{stage}"] = tracking.start_or_resume_run(
            tracking.EXPERIMENT, f"{name}-stage{stage}", {"stage": stage}, own, parent_run_id=parent
        )
    return ids


def finish(run_ids: Mapping[str, str], status: str) -> None:
    """Closes the run and its stages, as far as MLflow answers."""
    for run_id in run_ids.values():
        with contextlib.suppress(UserError):
            tracking.finish_run(run_id, status)


def _commit() -> str:
    """The commit of the checkout that this runs from, with a mark if files were changed since."""
    if sent := os.environ.get("MIMIC3D_COMMIT"):  # The sources came along with a job.
        return sent
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "installed"
