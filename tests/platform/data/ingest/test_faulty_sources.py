"""Faulty sources: each gives one line that says which file, what is wrong, and what to do."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
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

from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset
from mimic3d_platform.data.render.meshes import load_folder
from mimic3d_platform.errors import UserError

Files = dict[str, bytes]


@pytest.fixture
def scene(mesh_folder: Path) -> Scene:
    return posed_scene(next(mesh for mesh in load_folder(mesh_folder) if mesh.identifier == "box.ply"), 3)


def refused(source: object, dest: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        ingest_dataset(str(source), str(dest), here=True, **options)
    assert "\n" not in str(caught.value)
    assert not list(dest.glob("_manifest.parquet"))
    return str(caught.value)


def relabelled(files: Files, change: Callable[[list], object]) -> Files:
    """The files with other labels: `change` changes the list of [name, numbers], or returns another."""
    labels = json.loads(files["dataset.json"])["labels"]
    changed = change(labels)
    content = {"labels": labels if changed is None else changed}
    return files | {"dataset.json": json.dumps(content).encode()}


def set_number(labels: list, place: int, value: float) -> None:
    labels[1][1][place] = value


NAME = "00000/img00000001.png"

EG3D = {
    "no dataset.json": (lambda files: files.pop("dataset.json") and files, "no cameras are found in", "EG3D"),
    "no labels": (lambda files: relabelled(files, lambda labels: []), "has no labels", "add them"),
    "labels null": (lambda files: files | {"dataset.json": b'{"labels": null}'}, "has no labels", "add them"),
    "not JSON": (lambda files: files | {"dataset.json": b"{"}, "is not JSON", "correct it"),
    "half a JSON": (
        lambda files: files | {"dataset.json": files["dataset.json"][:700]},
        "dataset.json of",
        "is not JSON",
    ),
    "short label": (
        lambda files: relabelled(files, lambda labels: labels[1][1].pop() and None),
        f"{NAME} in dataset.json",
        "not 25 numbers",
    ),
    "class label": (
        lambda files: relabelled(files, lambda labels: [[name, 3] for name, _ in labels]),
        "not 25 numbers",
        "camera-to-world",
    ),
    "label of words": (
        lambda files: relabelled(files, lambda labels: set_number(labels, 3, "far")),
        f"{NAME} in dataset.json",
        "not 25 numbers",
    ),
    "nan": (
        lambda files: relabelled(files, lambda labels: set_number(labels, 3, float("nan"))),
        f"the camera of {NAME}",
        "not finite",
    ),
    "scaled pose": (
        lambda files: relabelled(files, lambda labels: set_number(labels, 0, 2.0)),
        f"the camera of {NAME}",
        "not a rotation",
    ),
    "focal in pixels": (
        lambda files: relabelled(files, lambda labels: set_number(labels, 16, 525.0)),
        f"the camera of {NAME}",
        "focal length that is not between",
    ),
    "labels that are a dict": (
        lambda files: relabelled(files, lambda labels: dict(labels)),
        "has no labels",
        "add them",
    ),
    "label twice": (
        lambda files: relabelled(files, lambda labels: labels + labels[1:2]),
        f"lists {NAME} twice",
        "remove one",
    ),
    "label without image": (
        lambda files: {name: data for name, data in files.items() if name != NAME},
        f"has cameras for {NAME}",
        "--partial",
    ),
    "image without label": (
        lambda files: relabelled(files, lambda labels: labels.pop(1) and None),
        f"has no camera for {NAME}",
        "--partial",
    ),
    "label that leads out": (
        lambda files: relabelled(files, lambda labels: [*labels, ["../../etc/passwd", labels[0][1]]]),
        "leads out of its folder",
        "'../../etc/passwd'",
    ),
    "truncated image": (
        lambda files: files | {NAME: files[NAME][: len(files[NAME]) // 2 + 15]},
        f"{NAME} of",
        "not a readable image (it is truncated)",
    ),
    "image of noise": (
        lambda files: files | {NAME: b"noise"},
        f"{NAME} of",
        "not a readable image (it is broken",
    ),
    "another size": (
        lambda files: files | {NAME: encoded(np.zeros((8, 8, 3), np.uint8))},
        f"{NAME} of",
        f"is 8×8 and the first image makes a set of {SIDE}×{SIDE}: use --resize",
    ),
    "not square": (
        lambda files: files | {NAME: encoded(np.zeros((8, 9, 3), np.uint8))},
        f"{NAME} of",
        "is 9×8 and not square: use --crop square",
    ),
    "no image at all": (
        lambda files: {"dataset.json": files["dataset.json"]},
        "cameras for 3 images",
        "--partial",
    ),
}


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("case", EG3D)
def test_an_eg3d_set_with_a_fault(scene: Scene, tmp_path: Path, case: str, zipped: bool) -> None:
    change, *says = EG3D[case]
    files = change(eg3d_files(scene))
    source = write_zip(tmp_path / "s.zip", files) if zipped else write_folder(tmp_path / "s", files)
    message = refused(source, tmp_path / "out")
    assert all(words in message for words in [*says, str(source)]), message


def test_zips_with_a_fault(scene: Scene, tmp_path: Path) -> None:
    files, path = eg3d_files(scene), tmp_path / "set.zip"
    whole = write_zip(path, files).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        assert "is not a zip, or is truncated" in refused(path, tmp_path / "out")
    path.write_bytes(whole.replace(b"IHDR", b"IHDX", 2))
    assert f"holds {scene.names[0]} damaged (its checksum differs)" in refused(path, tmp_path / "out")
    for name, says in {
        "../../evil.png": "leads out of its folder: do not trust it",
        "a\\..\\..\\evil.png": "leads out of its folder: do not trust it",
        "/etc/evil.png": "by an absolute path: give paths relative to its folder",
        "C:\\evil.png": "by an absolute path: give paths relative to its folder",
        "a/\nb.png": "with a control character: rename the file",
    }.items():
        write_zip(path, files | {name: b"x"})
        assert says in refused(path, tmp_path / "out")
    write_zip(path, files)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(scene.names[1], b"another")
    assert f"holds the file {scene.names[1]} twice" in refused(path, tmp_path / "out")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.png", b"x")
    assert "an unknown compression: zip it again" in refused(path, tmp_path / "out")
    (tmp_path / "set.tar").write_bytes(b"tar")
    assert "is not a zip" in refused(tmp_path / "set.tar", tmp_path / "out")


def test_places_and_options_that_cannot_be_used(scene: Scene, tmp_path: Path) -> None:
    assert "there is nothing at" in refused(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "holds no file: give a folder or a zip" in refused(tmp_path / "empty", tmp_path / "out")
    source = write_folder(tmp_path / "set", eg3d_files(scene))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "README.md").write_text("mine", encoding="utf-8")
    (tmp_path / "thesis" / "chapter.txt").write_text("mine", encoding="utf-8")
    assert "holds other files (chapter.txt)" in refused(source, tmp_path / "thesis")
    assert "/dev/null/set: Not a directory" in refused(source, Path("/dev/null/set"))
    assert "unknown scheme 'ftp'" in refused("ftp://host/set", tmp_path / "out")
    assert "has no file other.json" in refused(source, tmp_path / "out", cameras_file="other.json")
    assert "unknown form blender: give one of eg3d" in refused(source, tmp_path / "out", form="blender")
    assert "no cameras are found" in refused(source, tmp_path / "out", form="colmap")
    for options, says in (
        ({"resize": 0}, "resize is 0"),
        ({"resize": 10**6}, "resize is 1000000"),
        ({"background": "pink"}, "background is 'pink': give one of white, black"),
        ({"up": "w"}, "up is 'w': give one of y"),
    ):
        assert says in refused(source, tmp_path / "out", **options)


def test_object_storage_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("MIMIC3D_PATIENCE_S", "0")
    assert "nothing answers at http://127.0.0.1:9" in refused("s3://bucket/set.zip", tmp_path / "out")
    source = write_folder(tmp_path / "set", eg3d_files(scene))
    with pytest.raises(UserError, match=r"nothing answers at http://127\.0\.0\.1:9"):
        ingest_dataset(str(source), "s3://bucket/out", here=True)


def changed_json(files: Files, **changes: object) -> Files:
    return files | {"transforms.json": json.dumps(json.loads(files["transforms.json"]) | changes).encode()}


NERF = {
    "no frames": (lambda files: changed_json(files, frames=[]), "transforms.json", "has no frames"),
    "distorted": (lambda files: changed_json(files, k1=0.02), "frame 0", "a distorted lens (k1): undistort"),
    "lens of words": (lambda files: changed_json(files, cx="middle"), "frame 0", "a cx that is not a number"),
    "no lens": (
        lambda files: changed_json(files, fl_x=None, fl_y=None),
        "frame 0",
        "neither fl_x nor camera_angle_x",
    ),
    "no matrix": (
        lambda files: changed_json(files, frames=[{"file_path": "00000/img00000000.png"}]),
        "frame 0",
        "a transform_matrix that is not 4×4",
    ),
    "image missing": (
        lambda files: changed_json(
            files, frames=json.loads(files["transforms.json"])["frames"] + [
                {"file_path": "none", "transform_matrix": np.eye(4).tolist()}
            ]
        ),
        "cameras for none",
        "--partial",
    ),
    "another shape": (lambda files: changed_json(files, h=8), "is of 16×8", "that the cameras describe"),
}  # fmt: skip


@pytest.mark.parametrize("case", NERF)
def test_transforms_with_a_fault(scene: Scene, tmp_path: Path, case: str) -> None:
    change, *says = NERF[case]
    source = write_folder(tmp_path / "set", change(nerf_files(scene, pixels=True)))
    message = refused(source, tmp_path / "out")
    assert all(words in message for words in [*says, str(source)]), message


def test_the_splits_of_a_synthetic_scene_are_one_set(scene: Scene, tmp_path: Path) -> None:
    files = nerf_files(scene, pixels=False)
    content = json.loads(files.pop("transforms.json"))
    for split, frames in (("train", content["frames"][:2]), ("test", content["frames"][2:])):
        files[f"transforms_{split}.json"] = json.dumps(content | {"frames": frames}).encode()
    manifest = ingest_dataset(str(write_folder(tmp_path / "lego", files)), str(tmp_path / "out"), here=True)
    assert manifest.count == 3 and manifest.identities == 1


COLMAP = {
    "distorted": (
        lambda files: {**files, "sparse/0/cameras.txt": b"7 SIMPLE_RADIAL 16 16 20 8 8 0.1\n"},
        "camera 7 of sparse/0/cameras.txt",
        "a distorted lens (SIMPLE_RADIAL): undistort",
    ),
    "fisheye": (
        lambda files: {**files, "sparse/0/cameras.txt": b"7 OPENCV_FISHEYE 16 16 20 20 8 8 0 0 0 0\n"},
        "a distorted lens (OPENCV_FISHEYE)",
    ),
    "unknown model": (
        lambda files: {**files, "sparse/0/cameras.txt": b"7 MAGIC 16 16 20\n"},
        "sparse/0/cameras.txt",
        "has a lens of the model MAGIC, which is not known",
    ),
    "camera missing": (
        lambda files: {**files, "sparse/0/cameras.txt": b"6 PINHOLE 16 16 20 20 8 8\n"},
        "names a camera 7 that sparse/0/cameras.txt lacks",
    ),
    "no image registered": (lambda files: {**files, "sparse/0/images.txt": b"#\n"}, "no registered image"),
    "half a line": (
        lambda files: {**files, "sparse/0/images.txt": b"1 1 0 0 0\n\n"},
        "sparse/0/images.txt",
        "is damaged",
    ),
    "image missing": (
        lambda files: {name: data for name, data in files.items() if not name.endswith("2.png")},
        "cameras for 00000/img00000002.png",
        "--partial",
    ),
}


@pytest.mark.parametrize("case", COLMAP)
def test_a_colmap_model_with_a_fault(scene: Scene, tmp_path: Path, case: str) -> None:
    change, *says = COLMAP[case]
    source = write_folder(tmp_path / "set", change(colmap_files(scene, binary=False)))
    message = refused(source, tmp_path / "out")
    assert all(words in message for words in [*says, str(source)]), message


def test_binary_models_that_are_cut_short_or_lie(scene: Scene, tmp_path: Path) -> None:
    files = colmap_files(scene, binary=True)
    for name in ("sparse/0/images.bin", "sparse/0/cameras.bin"):
        for data in (files[name][:7], files[name][:-30], struct.pack("<Q", 2**60) + files[name][8:]):
            source = write_folder(tmp_path / "set", files | {name: data})
            assert f"{name} of {source} is damaged" in refused(source, tmp_path / "out")


def test_images_that_colmap_left_out_are_counted(scene: Scene, tmp_path: Path) -> None:
    files = colmap_files(scene, binary=True) | {"images/blurred.png": scene.file(0)}
    manifest = ingest_dataset(str(write_folder(tmp_path / "set", files)), str(tmp_path / "out"), here=True)
    assert manifest.count == 3 and manifest.provenance["left_out"] == ["images/blurred.png"]


TABLE = {
    "no rows": (lambda text: text.splitlines()[0], "has no row"),
    "no image column": (lambda text: text.replace("file,", "picture,", 1), "has no column 'image'"),
    "too few fields": (lambda text: text + "a.png,thing\n", "row 4 of cameras.csv", "fewer fields"),
    "camera of words": (lambda text: text.replace('red,1960,', 'red,1960,x', 1), "not 25 numbers"),
    "weight": (lambda text: text.replace(",0.5,", ",-0.5,"), "row 1 of cameras.csv", "the weight '-0.5'"),
    "a column of ours": (lambda text: text.replace(",paint,", ",mask,"), "a column 'mask'"),
    "not text": (lambda text: "\udcff", "not CSV in UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_a_table_with_a_fault(scene: Scene, tmp_path: Path, case: str) -> None:
    change, *says = TABLE[case]
    files = table_files(scene, form="csv")
    text = change(files["cameras.csv"].decode().replace("\r\n", "\n"))
    files["cameras.csv"] = text.encode(errors="surrogateescape")
    source = write_folder(tmp_path / "set", files)
    message = refused(source, tmp_path / "out")
    assert all(words in message for words in [*says, str(source)]), message


def test_a_table_s_own_weights_and_balancing_exclude_each_other(scene: Scene, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", table_files(scene, form="csv"))
    assert "leave out --balance" in refused(source, tmp_path / "out", balance=True)


def test_a_cameras_file_of_another_name_is_taken_when_named(scene: Scene, tmp_path: Path) -> None:
    files = table_files(scene, form="json")
    files["poses/left.json"] = files.pop("cameras.json").replace(b'"0000', b'"../0000')
    source = write_folder(tmp_path / "set", files)
    assert "no cameras are found" in refused(source, tmp_path / "out")
    manifest = ingest_dataset(str(source), str(tmp_path / "out"), cameras_file="poses/left.json", here=True)
    assert manifest.count == 3


def test_a_listing_of_many_is_read_one_by_one(scene: Scene, tmp_path: Path) -> None:
    """Labels that do not come first, or with other keys beside them, are read too."""
    files = eg3d_files(scene)
    for text in (
        b'{"comment": "x", "labels": %s}' % json.dumps(json.loads(files["dataset.json"])["labels"]).encode(),
        json.dumps(json.loads(files["dataset.json"]) | {"comment": "x"}, indent=2).encode(),
        dataset_json(scene.names, scene.labels).replace(", ", ",").encode(),
    ):
        source = write_folder(tmp_path / "set", files | {"dataset.json": text})
        out = tmp_path / f"out-{len(text)}"
        assert ingest_dataset(str(source), str(out), here=True).count == 3
