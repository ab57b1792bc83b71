"""`mimic3d data`: ingest, inspect, verify, export; interrupted ingestions resume."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from posed_scene import Scene, eg3d_files, posed_scene, write_zip

from mimic3d_command import error_of, mimic3d
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset
from mimic3d_platform.data.render.meshes import load_folder
from mimic3d_platform.errors import UserError


@pytest.fixture
def scene(mesh_folder: Path) -> Scene:
    return posed_scene(next(mesh for mesh in load_folder(mesh_folder) if mesh.identifier == "box.ply"), 60)


def done(*arguments: object) -> str:
    run = mimic3d(*arguments)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_in_looked_at_checked_and_out_again(scene: Scene, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "given.zip", eg3d_files(scene))
    uri, zip_again = tmp_path / "set", tmp_path / "again.zip"
    made = done("data", "ingest", source, uri, "--mirror", "--balance", "--local")
    assert made.splitlines()[-1] == f"{uri}: 120 images of 16×16, 60 identities"
    sheet, plot = tmp_path / "sheet.png", tmp_path / "cameras.png"
    numbers = json.loads(done("data", "inspect", uri, "--sheet", sheet, "--cameras", plot, "--duplicates"))
    assert numbers["images"] == 120 and "weight" in numbers["columns"] and numbers["duplicates"]
    assert sheet.read_bytes()[:4] == plot.read_bytes()[:4] == b"\x89PNG"
    assert "120 images and their cameras are intact" in done("data", "verify", uri, "--local")
    assert "120 images and dataset.json" in done("data", "export", uri, zip_again)

    assert "exists already" in error_of(mimic3d("data", "export", uri, zip_again))
    assert "give `square`" in error_of(mimic3d("data", "ingest", source, tmp_path / "x", "--crop", "round"))
    shard = uri / open_dataset(str(uri)).shards[0].path
    shard.write_bytes(shard.read_bytes()[:-1])
    run = mimic3d("data", "verify", uri, "--local")
    assert run.returncode == 2 and f"error: {uri} has 1 faults" in run.stderr
    assert run.stdout.splitlines()[-1].startswith(f"{shard.name}: has ")


INGEST = """
import sys
from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset
ingest_dataset(sys.argv[1], sys.argv[2], here=True, shard_bytes=1500,
               on_progress=lambda done, total: print(done, flush=True))
"""


def ingest_in_a_process(*arguments: object, **limits: int) -> subprocess.Popen:
    """Runs `INGEST`; with `largest`, no file may grow beyond so many bytes, as on a full disk."""
    text = "".join(
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
        for most in limits.values()
    )
    return subprocess.Popen(
        [sys.executable, "-c", text + INGEST, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(scene: Scene, tmp_path: Path) -> None:
    source, uri = write_zip(tmp_path / "given.zip", eg3d_files(scene)), tmp_path / "set"
    process = ingest_in_a_process(source, uri, largest=1000)
    _, errors = process.communicate(timeout=100)
    last = errors.strip().splitlines()[-1]
    assert process.returncode and f"cannot write {uri}/part-00000.parquet" in last, last
    assert not list(uri.glob("*.parquet")) and not list(uri.glob(".*"))
    assert ingest_dataset(str(source), str(uri), here=True).count == 60


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_ingestion_that_is_stopped_goes_on_with_the_same_bytes(
    scene: Scene, tmp_path: Path, stop: signal.Signals
) -> None:
    source, uri = write_zip(tmp_path / "given.zip", eg3d_files(scene)), tmp_path / "set"
    process = ingest_in_a_process(source, uri)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 10:
        pass
    process.send_signal(stop)
    assert process.wait(timeout=60) != 0
    with pytest.raises(UserError, match="half-written"):
        open_dataset(str(uri))
    kept = {path: path.stat().st_mtime_ns for path in sorted(uri.glob("part-*.parquet"))}
    resumed = ingest_dataset(str(source), str(uri), here=True, shard_bytes=1500)
    whole = ingest_dataset(str(source), str(tmp_path / "whole"), here=True, shard_bytes=1500)
    assert resumed.fingerprint == whole.fingerprint and len(whole.shards) > len(kept) > 1
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
