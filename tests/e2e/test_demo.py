"""The demo through the command, with a recipe cut to a few steps: stopped twice on the way, run to its end,
then run again."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import trimesh
from PIL import Image

from mimic3d_command import mimic3d, start_mimic3d
from mimic3d_platform import local, storage
from mimic3d_platform.cli import demo
from mimic3d_platform.data.format.manifest import MANIFEST
from mimic3d_platform.data.render.debian_cars import fetch_package
from mimic3d_platform.data.render.meshes import load_mesh
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import DEFAULT_RUNS_URI

# The shared runs are the set-up of the first test.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2700)]

TOTAL = 64
OVERRIDES = (
    "schedule.stage1_kimg=0.032",
    "schedule.stage2_kimg=0.032",
    "output.checkpoint_kimg=0.008",
    "output.sample_kimg=0.032",
    "output.metric_images=16",
    "output.metric_identities=2",
)
PARTS = ("stack", "weights", "data", "training", "pictures")
USER_CACHE = Path.home() / ".local" / "share" / "mimic3d" / "cache"


@dataclass(frozen=True)
class Shown:
    """What a whole run of the demo left."""

    folder: Path
    said: str
    summary: dict[str, Any]

    def picture(self, kind: str) -> Path:
        return Path(self.summary["pictures"][kind])


@pytest.fixture(scope="module")
def options(own_home: Path, stack: local.StackStatus, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The demo's options; its car models are the ones that the user has, or are fetched."""
    cache = own_home / "cache"
    cache.mkdir(exist_ok=True)
    for package in USER_CACHE.glob("*.deb"):
        (cache / package.name).symlink_to(package)
    try:
        fetch_package(cache)
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("demo")
    return ["demo", "--folder", str(folder), *(part for line in OVERRIDES for part in ("--set", line))]


@pytest.fixture(scope="module")
def shown(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Shown:
    logs = tmp_path_factory.mktemp("logs")
    stop(options, signal.SIGINT, some_shards, logs / "interrupted.log")
    said = (logs / "interrupted.log").read_text(encoding="utf-8")
    assert said.splitlines()[-1] == "error: stopped; run the same command again to resume"
    assert not stored(MANIFEST)
    stop(options, signal.SIGKILL, a_checkpoint, logs / "killed.log")
    run = mimic3d(*options, timeout=900)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    folder = Path(options[2])
    return Shown(folder, run.stdout, json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def stop(options: list[str], number: int, reached: Callable[[], bool], log: Path) -> None:
    """Starts the demo and stops it by a signal once it is as far as `reached` says."""
    process = start_mimic3d(*options, log=log)
    deadline = time.monotonic() + 600
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(30) == (130 if number == signal.SIGINT else -number)


def stored(ending: str) -> list[str]:
    return [uri for uri in storage.list_files(demo.DATA_URI) if uri.endswith(ending)]


def some_shards() -> bool:
    return len(stored(".parquet")) >= 2


def a_checkpoint() -> bool:
    notes = storage.list_files(DEFAULT_RUNS_URI, suffix="/manifest.json")
    return any("/cars-continued-" in uri for uri in notes)


def test_it_goes_on_from_where_it_was_stopped(shown: Shown) -> None:
    assert f"measuring: 0 of {TOTAL}" not in shown.said
    assert f"{TOTAL} of {TOTAL} images" in shown.said
    assert set(shown.summary["metrics"]) == {"0", "32", "64"}


def test_the_summary_is_complete(shown: Shown) -> None:
    summary = shown.summary
    assert summary["recipe"] == "cars-continued"
    assert tuple(summary["seconds"]) == PARTS and summary["training_seconds"] > 0
    colourings, views = demo.DATA_SIZES["cars-continued"]
    assert summary["data"]["images"] == 13 * colourings * views and summary["data"]["fingerprint"]
    assert summary["model"]["version"] == 1 and summary["mlflow"].startswith("http://127.0.0.1:")
    for found in summary["metrics"].values():
        for measure in ("fd_efficientnetlite2mid", "warp_share"):
            assert {f"{measure}/2d", f"{measure}/3d"} <= found.keys()
        assert np.isfinite(list(found.values())).all()


def test_it_tells_what_where_and_how_long(shown: Shown) -> None:
    for part in PARTS:
        assert f". {part}: " in shown.said
    for where in (shown.summary["mlflow"], *shown.summary["pictures"].values(), "mimic3d down"):
        assert where in shown.said


def test_the_grid_and_the_samples_are_pictures(shown: Shown) -> None:
    samples = sorted(shown.picture("samples").glob("*.png"))
    assert [int(path.stem) for path in samples] == [0, 32, 64]
    for path in (shown.picture("grid"), *samples):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, path


def test_the_video_has_all_frames_and_they_move(shown: Shown) -> None:
    path = str(shown.picture("orbit"))
    assert imageio_ffmpeg.count_frames_and_secs(path)[0] == demo.FRAMES
    reader = imageio_ffmpeg.read_frames(path)
    width, height = next(reader)["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3).astype(float) for frame in reader]
    assert frames[0].std() > 5
    assert np.abs(frames[0] - frames[len(frames) // 2]).mean() > 0.1


def test_the_mesh_is_a_car_of_its_own_colours(shown: Shown) -> None:
    mesh = trimesh.load_mesh(shown.picture("mesh"))
    assert mesh.is_watertight and len(mesh.faces) > 1000
    length, height = mesh.extents[[0, 2]].max(), mesh.extents[1]
    assert 0.5 < length < 1.1 and height < 0.6 * length
    assert load_mesh(shown.picture("mesh"), identifier="car").colours.std() > 0.05


def test_run_again_it_reuses_all_and_is_quick(options: list[str], shown: Shown) -> None:
    kinds = ("grid", "orbit", "mesh")
    before = [shown.picture(kind).stat().st_mtime_ns for kind in kinds]
    started = time.monotonic()
    run = mimic3d(*options, timeout=900)
    assert run.returncode == 0 and time.monotonic() - started < 60
    again = json.loads((shown.folder / "summary.json").read_text(encoding="utf-8"))
    assert [shown.picture(kind).stat().st_mtime_ns for kind in kinds] == before
    assert {**again, "seconds": None} == {**shown.summary, "seconds": None}
