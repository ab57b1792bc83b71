"""Sources as other programs and people really make them: taken with the right values, or refused by name."""

import io
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from posed_scene import dataset_json, encoded, write_folder, write_zip
from small_sources import (
    LABELS,
    colmap,
    eg3d,
    ingest,
    nerf,
    picture,
    png,
    rows_are_pictures,
)

from mimic3d_platform.data.format.image_files import load_image
from mimic3d_platform.data.ingest.image_edits import Edit, edit_image
from mimic3d_platform.errors import UserError


def test_backslashes_are_slashes_in_listings_and_in_zips(tmp_path: Path) -> None:
    names = ["car0/a.png", "car0/b.png", "car1/a.png"]
    backward = [name.replace("/", "\\") for name in names]
    source = write_folder(tmp_path / "s", eg3d(names, backward))
    found = ingest(source, tmp_path / "out")
    assert list(found) == names and {row["identity"] for row in found.values()} == {"car0", "car1"}
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name, data in eg3d(names).items():
            info = zipfile.ZipInfo("x")
            info.filename = name.replace("/", "\\")
            archive.writestr(info, data)
    assert list(ingest(tmp_path / "s.zip", tmp_path / "zip")) == names


def test_unicode_forms_cases_and_marks(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    files = {apart: png(1), "B.PNG": png(2)}
    listing = b"\xef\xbb\xbf" + dataset_json([composed, "b.png"], LABELS[:2]).encode()
    source = write_folder(tmp_path / "s", files | {"dataset.json": listing})
    assert list(ingest(source, tmp_path / "out")) == [composed, "b.png"]
    write_folder(source, {composed: png(3)})
    with pytest.raises(UserError, match="which have one name"):
        ingest(source, tmp_path / "twice")


@pytest.mark.parametrize("options", [{"resize": 8}, {"mirror": True}, {"resize": 8, "mirror": True}])
def test_names_that_fall_together_stay_apart(tmp_path: Path, options: dict) -> None:
    names = ["a.jpg", "a.png", "a.jpeg", "a.jpg.webp"]
    files = {
        name: encoded(picture(i), name.split(".")[-1].replace("jpg", "jpeg")) for i, name in enumerate(names)
    }
    source = write_folder(tmp_path / "s", files | {"dataset.json": dataset_json(names, LABELS).encode()})
    found = ingest(source, tmp_path / "out", **options)
    assert len(found) == 4 * (2 if "mirror" in options else 1)
    assert len({row["identity"] for row in found.values()}) == 4


def test_a_set_within_one_folder_of_a_zip(tmp_path: Path) -> None:
    table = f"image,camera\n0.png,{' '.join(map(str, LABELS[0]))}\n".encode()
    sets = {
        "nerf": {"0.png": png(), "transforms.json": nerf(["0.png"])},
        "splits": {"0.png": png(), "transforms_train.json": nerf(["0.png"])},
        "colmap": colmap(),
        "table": {"0.png": png(), "cameras.csv": table},
    }
    hidden = {"__MACOSX/scene/transforms.json": b"\0", ".git/dataset.json": b"\0"}
    for name, files in sets.items():
        within = {f"scene/{key}": data for key, data in files.items()}
        zipped = write_zip(tmp_path / f"{name}.zip", within | hidden)
        assert len(ingest(zipped, tmp_path / name)) == (3 if name == "colmap" else 1)
    two = write_zip(
        tmp_path / "two.zip", {f"{top}/{key}": data for top in "ab" for key, data in sets["nerf"].items()}
    )
    with pytest.raises(UserError, match=r"holds 2 sets \(a/transforms.json, b/transforms.json\)"):
        ingest(two, tmp_path / "out")
    assert len(ingest(two, tmp_path / "one", cameras_file="b/transforms.json")) == 1


def test_splits(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(2)}
    files |= {"transforms_train.json": nerf(["0.png", "1.png"]), "transforms_test.json": nerf(["7.png"])}
    source = write_folder(tmp_path / "s", files)
    with pytest.raises(UserError, match=r"transforms_test\.json of .* has cameras for 7\.png"):
        ingest(source, tmp_path / "out")
    assert len(ingest(source, tmp_path / "alone", cameras_file="transforms_train.json")) == 2
    assert len(ingest(source, tmp_path / "partial", partial=True)) == 2
    write_folder(source, {"transforms_test.json": nerf(["./0", "1.png"])})
    assert len(ingest(source, tmp_path / "copied")) == 2, "a split that repeats another is taken once"
    write_folder(source, {"transforms_test.json": nerf(["1.png", "0.png"])})
    with pytest.raises(UserError, match=r"transforms_train\.json and transforms_test\.json of .* both list"):
        ingest(source, tmp_path / "contradiction")


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", png()[:20]]
)
def test_a_broken_image_whose_size_is_needed(tmp_path: Path, data: bytes) -> None:
    files = {"0.png": png(), "1.png": data, "2.png": png(2), "transforms.json": nerf(["0", "1", "2"])}
    source = write_folder(tmp_path / "s", files)
    assert list(ingest(source, tmp_path / "out", partial=True)) == ["0.png", "2.png"]
    with pytest.raises(UserError, match=r"1\.png of .* is not a readable image"):
        ingest(source, tmp_path / "whole")


@pytest.mark.parametrize("where", ["images/", "input/", "rgb/", "images_2/", ""])
def test_colmap_pictures_where_programs_keep_them(tmp_path: Path, where: str) -> None:
    source = write_folder(tmp_path / "s", colmap(where=where) | {"masks/0.png": png(9)})
    assert rows_are_pictures(ingest(source, tmp_path / "out"))


def test_colmap_pictures_elsewhere(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", colmap(where="photographs/"))
    with pytest.raises(UserError, match=r"looked in images/, input/, rgb/.*the top; put them into images/"):
        ingest(source, tmp_path / "out")


def test_colmap_text_without_lines_of_points(tmp_path: Path) -> None:
    for number, points in enumerate(("", "\n", "1.5 2.5 -1 3.5 4.5 7\n")):
        source = write_folder(tmp_path / f"s{number}", colmap(points=points))
        assert rows_are_pictures(ingest(source, tmp_path / f"out{number}"))


@pytest.mark.parametrize(
    ("camera", "says"),
    [
        ("1 FULL_OPENCV 16 16 20 20 8 8 0 0 0 0 0 0 0 0", None),
        ("1 SIMPLE_DIVISION 16 16 20 8 8 0", None),
        ("1 PINHOLE 16 16 20 20 8 8\n2 NEVER_SEEN 16 16 1 2 3", None),
        ("1 FOV 16 16 20 20 8 8 0.9", r"distorted lens \(FOV\)"),
        ("1 SIMPLE_DIVISION 16 16 20 8 8 0.1", r"distorted lens \(SIMPLE_DIVISION\)"),
        ("1 RAD_TAN_THIN_PRISM_FISHEYE 16 16 20 20 8 8" + " 0" * 12, "distorted lens"),
        ("1 NEVER_SEEN 16 16 20 8 8", "a lens of the model NEVER_SEEN, which is not known"),
        ("1 PINHOLE 16 16 20 8 8", "PINHOLE has 4 parameters"),
    ],
)
def test_colmap_lenses(tmp_path: Path, camera: str, says: str | None) -> None:
    source = write_folder(tmp_path / "s", colmap(camera))
    if says is None:
        assert rows_are_pictures(ingest(source, tmp_path / "out"))
        return
    with pytest.raises(UserError, match=says):
        ingest(source, tmp_path / "out")


def test_a_binary_model_with_an_unused_lens(tmp_path: Path) -> None:
    def lenses(number: int, parameters: int) -> bytes:
        first = struct.pack("<IiQQ4d", 1, 1, 16, 16, 20, 20, 8, 8)
        return (
            struct.pack("<Q", 2)
            + first
            + struct.pack(f"<IiQQ{parameters}d", 2, number, 16, 16, *[1.0] * parameters)
        )

    images = struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 2, 1) + b"0.png\0" + struct.pack("<Q", 0)
    files = {"images/0.png": png(), "sparse/0/images.bin": images, "sparse/0/cameras.bin": lenses(11, 16)}
    source = write_folder(tmp_path / "s", files)
    assert len(ingest(source, tmp_path / "out")) == 1
    write_folder(source, {"sparse/0/cameras.bin": lenses(99, 3)})
    with pytest.raises(UserError, match="camera 2 has a lens of the model number 99, which is not known"):
        ingest(source, tmp_path / "unknown")


def test_a_larger_model_is_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_folder(tmp_path / "s", colmap(model="sparse/1") | colmap(count=2))
    assert len(ingest(source, tmp_path / "out")) == 2
    assert (
        "sparse/1/images.txt has 3 images" in caplog.text and "--cameras sparse/1/images.txt" in caplog.text
    )
    assert rows_are_pictures(ingest(source, tmp_path / "all", cameras_file="sparse/1/images.txt"))


def turned(form: str) -> bytes:
    """An image, red above and blue below, with the tag of EXIF that turns it upside down."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :, 0], pixels[8:, :, 2] = 255, 255
    sink = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(sink, form, exif=exif)
    return sink.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_tag_is_taken_off_and_the_pixels_stay(form: str) -> None:
    given = turned(form)
    stored = edit_image(given, Edit(), "a").data
    with Image.open(io.BytesIO(stored)) as image, Image.open(io.BytesIO(given)) as source:
        assert image.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(source.convert("RGB")))
        assert image.format == ("JPEG" if form == "JPEG" else "PNG"), "a JPEG is not compressed again"


def test_sixteen_bits_become_eight_in_grey_and_in_colour() -> None:
    grey = edit_image(encoded(Image.fromarray(np.full((4, 4), 40000, np.uint16))), Edit(), "a")
    assert grey.changed and np.asarray(load_image(grey.data, "a")).tolist() == [[156] * 4] * 4
    rgb = np.full((4, 4, 3), 40000, ">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in rgb)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    file = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    colour = edit_image(file, Edit(), "a")
    assert colour.changed and colour.data[24] == 8
    assert np.asarray(load_image(colour.data, "a")).tolist() == [[[156] * 3] * 4] * 4


def test_profiles_stay_with_images_of_their_own_kind_only() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    sink = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(sink, "JPEG", icc_profile=profile)
    red = load_image(edit_image(sink.getvalue(), Edit(), "a").data, "a")
    assert red.mode == "RGB" and "icc_profile" not in red.info
    assert red.getpixel((0, 0))[0] > 250 and max(red.getpixel((0, 0))[1:]) < 5
    sink = io.BytesIO()
    Image.new("RGB", (16, 16)).save(sink, "PNG", icc_profile=profile)
    assert (
        load_image(edit_image(sink.getvalue(), Edit(resize=8), "a").data, "a").info["icc_profile"] == profile
    )


def test_very_many_pixels_are_counted_before_they_are_decoded() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (9600, 40000):
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
        with pytest.raises(
            UserError, match=f"a has {side**2} pixels and the limit is 89478485: make it smaller"
        ):
            edit_image(file, Edit(), "a")
