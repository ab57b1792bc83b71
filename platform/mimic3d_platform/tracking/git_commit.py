"""The commit of a git checkout, as runs and jobs record it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mimic3d_platform.settings import child_environment

TIMEOUT_S = 20


def run_git(folder: Path, *arguments: str) -> str:
    """The output of a git command in a folder.

    Raises:
        OSError: git is not installed.
        subprocess.SubprocessError: the folder is in no checkout, or git does not answer.
    """
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True, env=child_environment()
    ).stdout


def commit_of(folder: Path) -> str:
    """The commit of the checkout that holds a folder, with `-dirty` if tracked files have changed since.

    Raises:
        OSError, subprocess.SubprocessError: as `run_git`.
    """
    return run_git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").strip()
