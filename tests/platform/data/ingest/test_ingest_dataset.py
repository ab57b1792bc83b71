"""Sources of every form give the same rows: the images byte for byte, the cameras that took them."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from posed_scene import (
    SIDE,
    Scene,
    colmap_files,
    dataset_json,
    eg3d_files,
    encoded,
    nerf_files,
    posed_scene,
    table_files,
    write_folder,
    write_zip,
)

from mimic3d_platform import storage
from mimic3d_platform.data.format.camera_labels import cropped, mirrored
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.format.manifest_file import read_card
from mimic3d_platform.data.ingest.image_edits import parse_crop
from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset
from mimic3d_platform.data.inspect.inspect_dataset import inspect_dataset
from mimic3d_platform.data.inspect.verify_dataset import verify_dataset
from mimic3d_platform.data.render.meshes import load_folder
from mimic3d_platform.data.stream.training_stream import TrainingStream
from mimic3d_platform.errors import UserError


@pytest.fixture
def scene(mesh_folder: Path) -> Scene:
    return posed_scene(next(mesh for mesh in load_folder(mesh_folder) if mesh.identifier == "car.obj"))


def ingest(source: object, dest: object, **options) -> tuple[Manifest, list[dict]]:
    """The manifest and all rows."""
    manifest = ingest_dataset(str(source), str(dest), here=True, **options)
    return manifest, rows_of(dest, manifest)


def rows_of(uri: object, manifest: Manifest) -> list[dict]:
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(f"{uri}/{s.path}"))) for s in manifest.shards]
    return [row for table in tables for row in table.to_pylist()]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


SOURCES = {
    "EG3D zip": lambda scene, path: write_zip(path / "set.zip", eg3d_files(scene)),
    "EG3D zip, packed": lambda scene, path: write_zip(path / "set.zip", eg3d_files(scene), packed=True),
    "EG3D zip in a folder": lambda scene, path: write_zip(
        path / "set.zip", {f"cars/{name}": data for name, data in eg3d_files(scene).items()}
    ),
    "EG3D folder": lambda scene, path: write_folder(path / "set", eg3d_files(scene)),
    "NeRF, pixels": lambda scene, path: write_folder(path / "set", nerf_files(scene, pixels=True)),
    "NeRF, angle": lambda scene, path: write_folder(path / "set", nerf_files(scene, pixels=False)),
    "COLMAP text": lambda scene, path: write_folder(path / "set", colmap_files(scene, binary=False)),
    "COLMAP binary": lambda scene, path: write_folder(path / "set", colmap_files(scene, binary=True)),
    "CSV, one column": lambda scene, path: write_folder(path / "set", table_files(scene, form="csv")),
    "CSV, 25 columns": lambda scene, path: write_folder(path / "set", table_files(scene, form="wide")),
    "JSON table, zipped": lambda scene, path: write_zip(path / "s.zip", table_files(scene, form="json")),
}


@pytest.mark.parametrize("form", SOURCES)
def test_every_form_gives_the_images_as_stored_and_the_cameras_that_took_them(
    scene: Scene, tmp_path: Path, form: str
) -> None:
    manifest, rows = ingest(SOURCES[form](scene, tmp_path), tmp_path / "out")
    assert (manifest.count, manifest.resolution) == (len(scene.names), SIDE)
    assert [row["name"] for row in rows] == list(scene.names)
    assert [row["image"] for row in rows] == [scene.file(index) for index in range(len(rows))]
    expected = scene.labels.copy()
    if form == "NeRF, angle":  # it cannot say where the principal point is
        expected[:, 18] = expected[:, 21] = 0.5
    exact = form.startswith(("EG3D", "CSV", "JSON"))
    assert np.allclose([row["camera"] for row in rows], expected, rtol=0, atol=0 if exact else 2e-6)
    with TrainingStream(str(tmp_path / "out"), global_batch=6, seed=0) as stream:
        seen = {image.numpy().tobytes() for image in next(stream).images}
    assert seen == {image.transpose(2, 0, 1).tobytes() for image in scene.images}


def test_a_table_s_columns_pass_through(scene: Scene, tmp_path: Path) -> None:
    for form, year in (("csv", "1960"), ("json", 1960)):
        source = write_folder(tmp_path / form, table_files(scene, form=form))
        manifest, rows = ingest(source, tmp_path / f"out-{form}")
        assert manifest.identities == 2 and rows[3]["identity"] == "thing 1"
        assert [row["weight"] for row in rows] == [index + 0.5 for index in range(6)]
        assert {(row["paint"], row["year"]) for row in rows} == {("red", year)}


def test_object_storage_is_like_a_disk_and_ray_like_one_process(
    stack, scene: Scene, tmp_path: Path, s3_folder: str
) -> None:
    source = write_zip(tmp_path / "set.zip", eg3d_files(scene))
    local, _ = ingest(source, tmp_path / "out", shard_bytes=1000)
    storage.copy_tree(source, f"{s3_folder}/set.zip")
    storage.copy_tree(write_folder(tmp_path / "set", eg3d_files(scene)), f"{s3_folder}/folder")
    for source in ("set.zip", "folder"):
        remote = ingest_dataset(f"{s3_folder}/{source}", f"{s3_folder}/out-{source}", shard_bytes=1000)
        assert remote.fingerprint == local.fingerprint and len(remote.shards) > 2
        report = verify_dataset(f"{s3_folder}/out-{source}")
        assert (report.rows, report.problems) == (6, [])
    found = inspect_dataset(f"{s3_folder}/out-folder", f"{s3_folder}/sheet.png", duplicates=True, here=False)
    assert found["duplicates"]["exact"]["images"] == 0 and storage.exists(f"{s3_folder}/sheet.png")
    broken = eg3d_files(scene) | {scene.names[4]: b"noise"}
    storage.copy_tree(write_zip(tmp_path / "broken.zip", broken), f"{s3_folder}/broken.zip")
    with pytest.raises(UserError, match=r"img00000004\.png of s3://.* is not a readable image"):
        ingest_dataset(f"{s3_folder}/broken.zip", f"{s3_folder}/out", shard_bytes=1000)


def test_identities_follow_the_folders_of_objects_and_not_those_of_thousands(
    scene: Scene, tmp_path: Path
) -> None:
    plain, _ = ingest(write_zip(tmp_path / "faces.zip", eg3d_files(scene)), tmp_path / "faces")
    assert plain.identities == 6
    names = [f"{'abc'[index % 3]}/{index:06d}.png" for index in range(6)]
    objects = Scene(scene.images, scene.labels, tuple(names))
    source = write_zip(tmp_path / "cars.zip", eg3d_files(objects))
    assert ingest(source, tmp_path / "cars")[0].identities == 3
    assert ingest(source, tmp_path / "each", by_folder=False)[0].identities == 6


def test_a_mirrored_twin_follows_each_image(scene: Scene, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", eg3d_files(scene))
    manifest, rows = ingest(source, tmp_path / "out", mirror=True, balance=True)
    assert manifest.count == 12 and manifest.identities == 6
    for first, twin in zip(rows[::2], rows[1::2], strict=True):
        assert np.array_equal(pixels(twin["image"]), pixels(first["image"])[:, ::-1])
        assert np.allclose(twin["camera"], mirrored(np.array([first["camera"]]))[0], atol=1e-6)
        assert twin["name"] == first["name"].replace(".png", "_mirror.png")
    assert manifest.cameras["yaw"][0] == pytest.approx(-manifest.cameras["yaw"][1])
    assert np.mean([row["weight"] for row in rows]) == pytest.approx(1, abs=1e-5)
    twins = [name.replace(".png", "_mirror.png") for name in scene.names[:3]]
    both = Scene(scene.images, scene.labels, (*scene.names[:3], *twins))
    with pytest.raises(UserError, match=r"has mirrored twins already .*leave out --mirror"):
        ingest(write_zip(tmp_path / "both.zip", eg3d_files(both)), tmp_path / "b", mirror=True)


def test_crop_and_resize_change_the_camera_with_the_image(scene: Scene, tmp_path: Path) -> None:
    files = eg3d_files(scene)
    oblong = np.concatenate([scene.images, scene.images[:, :, :8]], axis=2)  # 24 wide, 16 high
    files |= {name: encoded(oblong[index]) for index, name in enumerate(scene.names)}
    source = write_zip(tmp_path / "set.zip", files)
    with pytest.raises(UserError, match=r"img00000000.png of .* is 24×16 and not square: use --crop square"):
        ingest(source, tmp_path / "out")
    manifest, rows = ingest(source, tmp_path / "out", crop=parse_crop("square"), resize=8)
    assert manifest.resolution == 8 and manifest.row_group_rows == 256
    for index, row in enumerate(rows):
        part = Image.fromarray(oblong[index][:, 4:20]).resize((8, 8), Image.Resampling.LANCZOS)
        assert np.array_equal(pixels(row["image"]), np.asarray(part))
        expected = cropped(scene.labels[index].astype(np.float64), 24, 16, 4, 0, 16)
        assert np.allclose(row["camera"], expected, atol=1e-6)
    manifest, rows = ingest(source, tmp_path / "six", crop=parse_crop("6"))
    assert manifest.resolution == 6
    assert np.array_equal(pixels(rows[0]["image"]), oblong[0][5:11, 9:15])
    with pytest.raises(UserError, match="smaller than the crop of 17"):
        ingest(source, tmp_path / "more", crop=17)


def test_transparent_pixels_want_a_background(scene: Scene, tmp_path: Path) -> None:
    files, clear = eg3d_files(scene), np.zeros((SIDE, SIDE, 4), np.uint8)
    clear[4:8] = [200, 100, 0, 255]
    clear[8:] = [10, 10, 10, 128]
    source = write_zip(tmp_path / "set.zip", files | {scene.names[2]: encoded(clear)})
    with pytest.raises(UserError, match=r"img00000002.png of .* has transparent pixels: use --background"):
        ingest(source, tmp_path / "out")
    for background, empty, half in (("white", 255, 132), ("black", 0, 5)):
        _, rows = ingest(source, tmp_path / background, background=background)
        image = pixels(rows[2]["image"])
        assert (image[:4] == empty).all() and (image[4:8] == [200, 100, 0]).all()
        assert (np.abs(image[8:].astype(int) - half) <= 1).all()
        assert rows[1]["image"] == scene.file(1), "an opaque image stays as it was given"


def test_jpeg_and_webp_stay_as_given_and_a_changed_one_is_png(scene: Scene, tmp_path: Path) -> None:
    names = ("a.jpg", "b.webp", "c.png")
    files = {
        "a.jpg": encoded(scene.images[0], "JPEG"),
        "b.webp": encoded(scene.images[1], "WEBP"),
        "c.png": scene.file(2),
    }
    files["dataset.json"] = dataset_json(names, scene.labels[:3]).encode()
    _, rows = ingest(write_folder(tmp_path / "set", files), tmp_path / "out")
    assert {row["name"]: row["image"] for row in rows} == {name: files[name] for name in names}
    _, rows = ingest(tmp_path / "set", tmp_path / "small", resize=8)
    assert [row["name"] for row in rows] == ["a.png", "b.png", "c.png"]


def test_names_as_other_systems_write_them_are_names_that_a_zip_may_hold(
    scene: Scene, tmp_path: Path
) -> None:
    files = eg3d_files(scene)
    odd = [f".\\{name}".replace("/", "\\") for name in scene.names]
    files["dataset.json"] = dataset_json(odd, scene.labels).encode()
    _, rows = ingest(write_zip(tmp_path / "set.zip", files), tmp_path / "out")
    assert [row["name"] for row in rows] == list(scene.names)


def test_an_up_axis_is_turned_to_y(scene: Scene, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", nerf_files(scene, pixels=True))
    plain, _ = ingest(source, tmp_path / "plain")
    flipped, _ = ingest(source, tmp_path / "flipped", up="-y")
    assert flipped.cameras["pitch"] == pytest.approx([-value for value in plain.cameras["pitch"][::-1]])


def test_the_same_source_again_does_nothing_and_another_is_refused(scene: Scene, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", eg3d_files(scene))
    manifest, _ = ingest(source, tmp_path / "out", licence="CC0")
    shard = tmp_path / "out" / manifest.shards[0].path
    written = shard.stat().st_mtime_ns
    assert ingest(source, tmp_path / "out")[0] == manifest and shard.stat().st_mtime_ns == written
    assert manifest.licences == ["CC0"] and "CC0" in read_card(str(tmp_path / "out")).decode()
    with pytest.raises(UserError, match="already holds a data set"):
        ingest(source, tmp_path / "out", resize=8)
    smaller, _ = ingest(source, tmp_path / "out", resize=8, overwrite=True)
    assert smaller.resolution == 8 and open_dataset(str(tmp_path / "out")) == smaller


def test_a_run_that_stopped_goes_on_with_the_same_bytes(scene: Scene, tmp_path: Path) -> None:
    files = eg3d_files(scene)
    whole, _ = ingest(write_zip(tmp_path / "set.zip", files), tmp_path / "whole", shard_bytes=1000)
    assert len(whole.shards) > 2
    broken = bytearray((tmp_path / "set.zip").read_bytes())
    place = broken.index(scene.file(5))
    broken[place + 50] ^= 1
    (tmp_path / "set.zip").write_bytes(broken)
    with pytest.raises(UserError, match=r"img00000005.png damaged"):
        ingest(tmp_path / "set.zip", tmp_path / "out", shard_bytes=1000)
    with pytest.raises(UserError, match="half-written"):
        open_dataset(str(tmp_path / "out"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*.parquet")}
    assert kept
    broken[place + 50] ^= 1
    (tmp_path / "set.zip").write_bytes(broken)
    resumed, _ = ingest(tmp_path / "set.zip", tmp_path / "out", shard_bytes=1000)
    assert resumed.fingerprint == whole.fingerprint
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    (tmp_path / "out" / "_manifest.parquet").unlink()
    larger, rows = ingest(tmp_path / "set.zip", tmp_path / "out", shard_bytes=1500)
    assert len(larger.shards) < len(whole.shards) and [row["name"] for row in rows] == list(scene.names)


def test_partial_leaves_out_what_is_no_use_and_counts_it(scene: Scene, tmp_path: Path) -> None:
    files = eg3d_files(scene)
    files[scene.names[0]] = scene.file(0)[:60]
    del files[scene.names[3]]
    files["00000/extra.png"] = scene.file(1)
    source = write_zip(tmp_path / "set.zip", files)
    manifest, rows = ingest(source, tmp_path / "out", partial=True)
    assert [row["name"] for row in rows] == [scene.names[index] for index in (1, 2, 4, 5)]
    assert manifest.provenance["left_out_count"] == 3
    assert set(manifest.provenance["left_out"]) == {scene.names[0], scene.names[3], "00000/extra.png"}


def test_provenance_says_where_from_and_how(scene: Scene, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", eg3d_files(scene))
    manifest, _ = ingest(source, tmp_path / "out", background="white")
    told = open_dataset(str(tmp_path / "out")).provenance
    assert told == manifest.provenance
    assert (told["tool"], told["source"], told["form"]) == ("mimic3d data ingest", str(source), "eg3d")
    assert (told["background"], told["mirror"], told["up"]) == ("white", False, "y")
