"""Meshes of all formats are loaded coloured, centred and scaled; broken ones are skipped with a warning."""

import io
import lzma
import os
import shutil
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data_samples import MTL, OBJ

from mimic3d_platform.data.render import meshes
from mimic3d_platform.data.render.debian_cars import CARS, fetch_package, load_cars, unpack_cars
from mimic3d_platform.data.render.mesh_parts import to_srgb
from mimic3d_platform.data.render.meshes import load_folder, load_mesh
from mimic3d_platform.data.render.recolour import recolour
from mimic3d_platform.errors import UserError


def test_a_folder_of_all_formats(mesh_folder: Path) -> None:
    found = {mesh.identifier: mesh for mesh in load_folder(mesh_folder)}
    assert list(found) == ["box.ply", "car.obj", "deep/ball.glb"]
    for mesh in found.values():
        low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
        assert np.allclose(low + high, 0) and (high - low).max() == pytest.approx(1.0)
    assert np.allclose(found["box.ply"].colours, np.array([30, 60, 220]) / 255, atol=0.01)
    green = to_srgb(np.array([20, 200, 30]) / 255)  # a factor of glTF is linear light
    assert np.allclose(found["deep/ball.glb"].colours, green, atol=0.01)


def test_the_body_is_the_paint_and_glass_and_tyres_are_not(mesh_folder: Path) -> None:
    car = load_mesh(mesh_folder / "car.obj", identifier="car")
    red = np.isclose(car.colours, [0.8, 0.1, 0.1], atol=0.01).all(axis=1)
    assert red.sum() == 8 and np.array_equal(car.paint == 1, red)
    window = car.colours[car.vertices[car.faces][:, :, 1].min(axis=1) > 0]
    assert (window < 0.5).all(), "glass shows the dark inside of a car"


def test_a_colouring_changes_the_paint_and_little_else(mesh_folder: Path) -> None:
    car = load_mesh(mesh_folder / "car.obj", identifier="car")
    first, again, second = recolour(car, 0, 0), recolour(car, 0, 0), recolour(car, 0, 1)
    assert np.array_equal(first, again)
    assert np.abs(first - second)[car.paint == 1].max() > 0.2
    assert np.abs(first - car.colours)[car.paint == 0].max() < 0.2
    assert not np.array_equal(first, recolour(car, 1, 0))
    assert first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.obj", "v 0 0 0\nf 1 2 3\n"),
        ("nothing.obj", "# nothing\n"),
        ("point.obj", "v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n"),
        ("infinite.obj", "v 0 0 inf\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"),
        ("noise.glb", "not a GLB"),
        ("noise.ply", "not a PLY"),
        ("page.obj", "\n<!DOCTYPE html>\n<p>v 0 0 0</p>"),
        ("pointer.obj", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("extensions.gltf", '{"asset": {"version": "2.0"}, "extensionsUsed": [{}]}'),
        ("number.gltf", '{"asset": {"version": "2.0"}, "extensionsUsed": 99}'),
    ],
)
def test_a_broken_mesh_is_skipped_by_name(
    mesh_folder: Path, caplog: pytest.LogCaptureFixture, name: str, content: str
) -> None:
    (mesh_folder / name).write_text(content, encoding="utf-8")
    assert len(load_folder(mesh_folder)) == 3
    assert len(caplog.records) == 1 and name in caplog.text and "skipped" in caplog.text


def test_a_download_that_is_no_mesh_is_named(tmp_path: Path) -> None:
    for start, says in (("<html>", "it is a web page"), ("version https://git-lfs.g", "git lfs pull")):
        (tmp_path / "a.obj").write_text(start, encoding="utf-8")
        with pytest.raises(ValueError, match=says):
            load_mesh(tmp_path / "a.obj", identifier="a")


def test_whatever_a_reader_raises_ends_no_folder(
    mesh_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> list:
        raise AttributeError("one line\nand another")

    monkeypatch.setitem(meshes._READERS, ".ply", fail)
    assert len(load_folder(mesh_folder)) == 2
    assert "box.ply cannot be read as PLY: it is damaged (AttributeError one line and another)" in caplog.text


def test_a_name_that_is_not_utf8_is_skipped(mesh_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(mesh_folder / "box.ply", mesh_folder / os.fsdecode(b"b\xff.ply"))
    assert len(load_folder(mesh_folder)) == 3
    assert "its name is not UTF-8: rename it" in caplog.text and "b\\xff.ply" in caplog.text
    caplog.text.encode()


def test_no_usable_mesh(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no mesh folder at"):
        load_folder(tmp_path / "none")
    with pytest.raises(UserError, match="it has no mesh file"):
        load_folder(tmp_path)
    (tmp_path / "a.obj").write_text("v 0 0 0\n", encoding="utf-8")
    with pytest.raises(UserError, match="none of its 1 mesh files can be used"):
        load_folder(tmp_path)


def debian_package(path: Path) -> None:
    """Writes a package with the structure of the real one: one car in each of the three libraries."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as data:
        for number, (library, cars) in enumerate(CARS.items()):
            catalogue = f"id=x\nid#{number}={cars[0].identifier}\nname#{number}=A car\ncreator#{number}=Ann\n"
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr(
                    "PluginFurnitureCatalog.properties", catalogue + f"model#{number}=/cars/a/car.obj\n"
                )
                file.writestr("LICENSE.TXT", "CC-BY")
                file.writestr("cars/a/car.obj", OBJ.replace("Body", cars[0].paints[0]))
                file.writestr("cars/a/car.mtl", MTL.replace("Body", cars[0].paints[0]))
                file.writestr("cars/b/bike.obj", "")
            entry = tarfile.TarInfo(f"./usr/share/sweethome3d/furniture/{library.file}")
            entry.size = archive.tell()
            archive.seek(0)
            data.addfile(entry, archive)
    content = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0\n"), ("data.tar.xz", lzma.compress(tar.getvalue()))):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body
        content += b"\n" * (len(body) % 2)
    path.write_bytes(content)


def test_cars_come_from_debians_package_with_author_and_licence(tmp_path: Path) -> None:
    debian_package(tmp_path / "sweethome3d-furniture_1.8-1_all.deb")
    cars = load_cars(tmp_path)
    assert [car.identifier for car in cars] == [entries[0].identifier for entries in CARS.values()]
    assert {car.author for car in cars} == {"Ann"}
    assert all("creativecommons.org" in car.licence and "Debian" in car.source for car in cars)
    assert all((car.paint == 1).sum() == 8 for car in cars)
    assert [car.digest() for car in load_cars(tmp_path)] == [car.digest() for car in cars]


def test_a_broken_package_and_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sweethome3d-furniture_1.8-1_all.deb"
    debian_package(package)
    package.write_bytes(package.read_bytes()[:500])
    with pytest.raises(UserError, match=r"is broken: delete it and run again, or .*--meshes FOLDER"):
        load_cars(tmp_path)
    package.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"apt-get is missing: .*--meshes FOLDER"):
        load_cars(tmp_path)


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is Debian's")
def test_the_cars_are_fetched_where_apt_knows_no_packages_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "lists"
    (empty / "partial").mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(f'Dir::State::lists "{empty}";\n', encoding="utf-8")
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))

    package = fetch_package(tmp_path / "cache")

    assert list((tmp_path / "cache").iterdir()) == [package]
    with ThreadPoolExecutor() as pool:  # As a demo and a rendering that are started together.
        [folder] = {*pool.map(unpack_cars, [package] * 3)}
    assert sorted((tmp_path / "cache").iterdir()) == sorted([folder, package])
    assert len(list(folder.rglob("LICENSE.TXT"))) == len(CARS)
    assert not list(empty.glob("*Packages*")), "the machine's own lists are left alone"
