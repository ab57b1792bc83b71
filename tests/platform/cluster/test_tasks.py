"""Pieces of work as Ray tasks."""

import os
import subprocess
import sys
from pathlib import Path

import mimic3d_platform

SUM_UP = """
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.cluster.tasks import run_pieces
from doubling import twice

join_ray()
print(run_pieces(twice, 3))
"""


def test_workers_find_what_a_relative_python_path_names(stack, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "doubling.py").write_text(
        "def twice(index):\n    return 2 * index\n", encoding="utf-8"
    )
    sources = Path(mimic3d_platform.__file__).resolve().parents[1]
    relative = [os.path.relpath(each, tmp_path) for each in (tmp_path / "lib", sources, sources.parent)]
    run = subprocess.run(
        [sys.executable, "-c", SUM_UP],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(relative)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout.strip() == "[0, 2, 4]", run.stderr
