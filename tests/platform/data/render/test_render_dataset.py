"""Rendering a data set on Ray: the same bytes however often the run is interrupted and resumed."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.inspect.inspect_dataset import inspect_dataset
from mimic3d_platform.data.render import render_dataset as rendering
from mimic3d_platform.data.render.meshes import load_folder
from mimic3d_platform.data.render.ray_caster import RayCaster
from mimic3d_platform.data.render.render_dataset import RenderPlan, render_dataset
from mimic3d_platform.data.stream.training_stream import TrainingStream
from mimic3d_platform.errors import UserError

SMALL = {"colourings": 24, "views": 12, "seed": 5, "supersample": 2}
IMAGES = 3 * 24 * 12

RENDER = """
import sys
from pathlib import Path
from mimic3d_platform.data.render.meshes import load_folder
from mimic3d_platform.data.render.ray_caster import RayCaster
from mimic3d_platform.data.render.render_dataset import RenderPlan, render_dataset
render_dataset(sys.argv[1], 16, meshes=Path(sys.argv[2]), colourings=24, views=12, seed=5, supersample=2,
               on_progress=lambda done, total: print(done, flush=True))
"""


def render_set(uri: str, folder: Path, **changes) -> tuple[Manifest, list[int]]:
    """The manifest, and the counts of images done that were reported."""
    progress: list[int] = []
    options = SMALL | changes
    manifest = render_dataset(
        uri, 16, meshes=folder, on_progress=lambda done, _: progress.append(done), **options
    )
    return manifest, progress


def test_a_set_is_rendered_reused_and_guarded(
    stack, s3_folder: str, mesh_folder: Path, tmp_path: Path
) -> None:
    (mesh_folder / "broken.obj").write_text("f 1 2 3", encoding="utf-8")
    manifest, progress = render_set(s3_folder, mesh_folder)
    assert manifest == open_dataset(s3_folder)
    assert (manifest.count, manifest.identities, manifest.resolution) == (IMAGES, 72, 16)
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] == IMAGES and len(progress) > 3
    names = {Path(file).name for file in storage.list_files(s3_folder)}
    assert names == {shard.path for shard in manifest.shards} | {"_manifest.parquet"}

    again, progress = render_set(s3_folder, mesh_folder)
    assert again == manifest and progress == [IMAGES]
    with pytest.raises(UserError, match="already holds a data set"):
        render_set(s3_folder, mesh_folder, seed=6)

    other, _ = render_set(str(tmp_path / "local"), mesh_folder)
    assert other.fingerprint == manifest.fingerprint, "the place has no part in the images"

    with TrainingStream(s3_folder, global_batch=8, seed=0) as stream:
        assert next(stream).images.shape == (8, 3, 16, 16)
    numbers = inspect_dataset(s3_folder, tmp_path / "sheet.png")
    assert numbers["images"] == IMAGES and 5 <= numbers["cameras"]["pitch"][0] < 10
    assert Image.open(tmp_path / "sheet.png").size == (1024, 820)


def test_a_shard_mixes_models_and_holds_what_the_schema_says(
    stack, mesh_folder: Path, tmp_path: Path
) -> None:
    manifest, _ = render_set(str(tmp_path / "set"), mesh_folder)
    for shard in manifest.shards:
        table = pq.read_table(tmp_path / "set" / shard.path)
        models = [identity.rsplit("/", 1)[0] for identity in table["identity"].to_pylist()]
        assert len(set(models[:20])) == 3
        assert len(table["depth"][0].as_py()) == 16 * 16 * 4
    depth = np.frombuffer(table["depth"][0].as_py(), "<f4")
    assert np.isfinite(depth).any() and np.isinf(depth).any()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupted_run_is_resumed(
    stack, s3_folder: str, mesh_folder: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-c", RENDER, s3_folder, str(mesh_folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) == 0:
        pass
    process.send_signal(stop)
    assert process.wait(timeout=60) != 0
    with pytest.raises(UserError, match="half-written"):
        open_dataset(s3_folder)
    kept = min(file for file in storage.list_files(s3_folder, ".parquet") if "part-" in file)
    files, path = storage.arrow_filesystem(kept)
    written = files.get_file_info(path).mtime
    spoilt = storage.join(s3_folder, "part-00001.parquet")
    storage.write_bytes(spoilt, b"cut short")

    manifest, _ = render_set(s3_folder, mesh_folder)
    whole, _ = render_set(str(tmp_path / "whole"), mesh_folder)
    assert manifest.fingerprint == whole.fingerprint
    if not kept.endswith("part-00001.parquet"):
        assert files.get_file_info(path).mtime == written, "a shard that was whole is not rendered again"


def test_many_views_are_cut_into_shards_and_many_rays_into_pieces(
    mesh_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RenderPlan(16, 1, 2, 700, 5, 1, 1.0, "")
    shards = plan.shards()
    assert max(sum(len(part.views) for part in shard) for shard in shards) <= 256
    seen = sorted((part.colouring, view) for shard in shards for part in shard for view in part.views)
    assert seen == [(colouring, view) for colouring in range(2) for view in range(700)]

    caster = RayCaster(load_folder(mesh_folder)[0])
    whole = rendering._render_identity(caster, 1, range(0, 12), plan)
    monkeypatch.setattr(rendering, "_RAYS_AT_ONCE", 5 * 16 * 16)
    pieces = rendering._render_identity(caster, 1, range(0, 7), plan)
    pieces += rendering._render_identity(caster, 1, range(7, 12), plan)
    assert [row["image"] for row in pieces] == [row["image"] for row in whole]
    assert all(
        np.array_equal(piece["camera"], row["camera"]) for piece, row in zip(pieces, whole, strict=True)
    )


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"views": 10**9}, "views is 1000000000: give 1 to 1000000"),
        ({"supersample": 400}, "supersample is 400: give 1 to 16"),
        ({"focal": float("nan")}, "focal is nan: give 0.1 to 50"),
        ({"views": 10**6, "colourings": 10**6}, "images: render 100000000 at most"),
    ],
)
def test_numbers_beyond_any_use(tmp_path: Path, mesh_folder: Path, numbers: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        render_set(str(tmp_path / "set"), mesh_folder, **numbers)
    assert not (tmp_path / "set").exists()


def test_wrong_numbers_and_no_mesh(tmp_path: Path, mesh_folder: Path) -> None:
    with pytest.raises(UserError, match="views is 0: give 1 to 1000000"):
        render_set(str(tmp_path / "set"), mesh_folder, views=0)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no usable mesh"):
        render_set(str(tmp_path / "set"), tmp_path / "bare")


@pytest.mark.parametrize(
    ("address", "says"), [("", "no Ray cluster is named"), ("127.0.0.1:9", "no Ray cluster at 127.0.0.1:9")]
)
def test_no_ray(tmp_path: Path, mesh_folder: Path, address: str, says: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "RAY_ADDRESS": address}
    environment |= {"MIMIC3D_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", RENDER, str(tmp_path / "set"), str(mesh_folder)],
        capture_output=True,
        text=True,
        env=environment,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and "UserError" in last and says in last and "mimic3d up" in last


def test_own_meshes_keep_their_colours_unless_they_are_to_be_repainted(
    stack, mesh_folder: Path, tmp_path: Path
) -> None:
    few = {"views": 2, "supersample": 1, "models": 1}
    own, _ = render_set(str(tmp_path / "own"), mesh_folder, colourings=None, **few)
    (shard,) = own.shards
    table = pq.read_table(tmp_path / "own" / shard.path)
    assert (own.count, own.identities, set(table["identity"].to_pylist())) == (2, 1, {"box.ply"})
    (box, *_) = load_folder(mesh_folder)
    views = RayCaster(box).render(box.colours, torch.tensor(table["camera"].to_pylist()), 16, 1)
    for row, data in enumerate(table["image"].to_pylist()):
        apart = np.asarray(Image.open(io.BytesIO(data))).astype(int) - views.images[row]
        assert np.abs(apart).mean() < 0.1, "up to the rounding of cameras to float32"
    repainted, _ = render_set(str(tmp_path / "repainted"), mesh_folder, colourings=2, **few)
    assert (repainted.count, repainted.identities) == (4, 2)
