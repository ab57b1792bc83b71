"""Sources that are easily taken for something else: refused by name, or read with the right values."""

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from posed_scene import dataset_json, encoded, write_folder
from small_sources import LABELS, colmap, eg3d, ingest, nerf, png, rows_are_pictures

from mimic3d_platform.data.format.image_files import load_image
from mimic3d_platform.data.ingest.image_edits import Edit, edit_image
from mimic3d_platform.errors import UserError


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG file with one more chunk after its header."""
    return data[:33] + chunk(kind, content) + data[33:]


def png_of_16_bits(pixels: np.ndarray, *, colour: int) -> bytes:
    """A PNG file of (h, w, channels) 16-bit numbers; `colour` is PNG's colour type."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("labels_first", [True, False])
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "the lens OPENCV_FISHEYE"),
        ({"convention": "opengl"}, "the key convention"),
        ({"units": "pixels"}, "the key units"),
        ({"opengl": True}, "the key opengl"),
        ({"is_opencv": False}, "is_opencv: false, but poses are read as if it were true"),
        ({"convention": "opencv", "note": "ours"}, None),
    ],
)
def test_keys_beside_the_labels_of_eg3d(
    keys: dict, says: str | None, labels_first: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = json.loads(dataset_json(["0.png"], LABELS[:1]))
    content = labels | keys if labels_first else keys | labels
    source = write_folder(tmp_path / "s", {"0.png": png(), "dataset.json": json.dumps(content).encode()})
    if says is None:
        assert len(ingest(source, tmp_path / "out")) == 1
        assert "the keys convention, note are not read" in caplog.text
        return
    with pytest.raises(UserError, match=says):
        ingest(source, tmp_path / "out")


@pytest.mark.parametrize("end", ["", "garbage", "} {"])
def test_what_follows_the_labels_of_eg3d_is_json(end: str, tmp_path: Path) -> None:
    text = dataset_json(["0.png"], LABELS[:1]).rstrip().rstrip("}") + end
    source = write_folder(tmp_path / "s", {"0.png": png(), "dataset.json": text.encode()})
    with pytest.raises(UserError, match=r"dataset\.json of .* is not JSON"):
        ingest(source, tmp_path / "out")


def test_splits_beside_the_transforms_that_are_read_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["0.png", "1.png"]
    files = {name: png(number) for number, name in enumerate(names)}
    files |= {"transforms.json": nerf(names[:1]), "transforms_test.json": nerf(names)}
    assert len(ingest(write_folder(tmp_path / "s", files), tmp_path / "out")) == 1
    assert "transforms.json is read, and not transforms_test.json beside it" in caplog.text


TABLE_FAULTS = {
    "a weight in a later row alone": ([{}, {"weight": 5}], "row 1 .* has the weight None"),
    "numbers of more than 64 bits": ([{"n": 2**70}, {"n": 1}], "column 'n' of numbers that are too large"),
    "numbers that a double cannot hold": (
        [{"n": 2**60}, {"n": 0.5}],
        "column 'n' of numbers that are too large",
    ),
    "text that is not Unicode": ([{"t": "\ud800"}, {"t": "a"}], "column 't' that is not Unicode"),
    "an identity that is not Unicode": (
        [{"identity": "\ud800"}, {}],
        "column 'identity' that is not Unicode",
    ),
}


@pytest.mark.parametrize("case", TABLE_FAULTS)
def test_tables_with_a_fault(case: str, tmp_path: Path) -> None:
    extras, says = TABLE_FAULTS[case]
    rows = [{"image": f"{i}.png", "camera": LABELS[i], **extra} for i, extra in enumerate(extras)]
    files = {"0.png": png(0), "1.png": png(1), "cameras.json": json.dumps(rows).encode()}
    with pytest.raises(UserError, match=says):
        ingest(write_folder(tmp_path / "s", files), tmp_path / "out")


def test_a_column_that_stands_twice_in_a_table(tmp_path: Path) -> None:
    camera = " ".join(map(str, LABELS[0]))
    text = f"image,camera,identity,identity\n0.png,{camera},a,b\n"
    source = write_folder(tmp_path / "s", {"0.png": png(), "cameras.csv": text.encode()})
    with pytest.raises(UserError, match="two columns 'identity'"):
        ingest(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("4 0 0 0 0 0 0 2 1 0.png", "the rotation 0 0 0 0 for 0.png, which is no quaternion"),
        ("4 1 0 0 0 0 0 2 1", "neither an image nor points"),
    ],
)
def test_images_of_colmap_without_a_rotation_or_a_name(line: str, says: str, tmp_path: Path) -> None:
    files = colmap()
    files["sparse/0/images.txt"] += f"{line}\n\n".encode()
    with pytest.raises(UserError, match=says):
        ingest(write_folder(tmp_path / "s", files), tmp_path / "out")


def test_models_of_colmap_elsewhere_and_damaged_ones_beside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = colmap(camera="1 pinhole 16 16 20 20 8 8")
    files["sparse/1/images.txt"] = b"1 2 3 4\n"
    assert rows_are_pictures(ingest(write_folder(tmp_path / "beside", files), tmp_path / "a"))
    assert "sparse/1/images.txt" in caplog.text and "it is not needed" in caplog.text
    source = write_folder(tmp_path / "elsewhere", colmap(model="sparse/model"))
    with pytest.raises(UserError, match=r"a COLMAP model: read it with --cameras sparse/model/images\.txt"):
        ingest(source, tmp_path / "b")


def test_names_with_a_colon_and_names_that_differ_in_case(tmp_path: Path) -> None:
    assert len(ingest(write_folder(tmp_path / "colon", eg3d(["a:b.png", "1:2/c.png"])), tmp_path / "a")) == 2
    source = write_folder(tmp_path / "case", eg3d(["a.png", "A.png"], ["a.PNG", "A.png"]))
    with pytest.raises(UserError, match=r"lists a\.PNG, and holds"):
        ingest(source, tmp_path / "b")


def test_a_zip_with_names_in_utf_8_that_does_not_say_so(tmp_path: Path) -> None:
    files = eg3d(["xx.png"], ["\u00fc.png"])
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    plain = (tmp_path / "s.zip").read_bytes()
    (tmp_path / "s.zip").write_bytes(plain.replace(b"xx.png", "\u00fc.png".encode()))
    assert list(ingest(tmp_path / "s.zip", tmp_path / "out")) == ["\u00fc.png"]


def test_a_file_name_that_is_not_utf_8(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", eg3d(["0.png"]))
    with open(os.fsencode(source) + b"/\xff.txt", "wb"):
        pass
    with pytest.raises(UserError, match=r"\\xff\.txt, whose name is not UTF-8: rename it"):
        ingest(source, tmp_path / "out")


def test_partial_leaves_out_a_member_with_a_wrong_checksum(tmp_path: Path) -> None:
    names = ["0.png", "1.png", "2.png"]
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name, data in eg3d(names).items():
            archive.writestr(name, data)
    content = (tmp_path / "s.zip").read_bytes()
    middle = content.index(png(1)) + 45
    (tmp_path / "s.zip").write_bytes(
        content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    )
    with pytest.raises(UserError, match=r"holds 1\.png damaged"):
        ingest(tmp_path / "s.zip", tmp_path / "whole")
    assert sorted(ingest(tmp_path / "s.zip", tmp_path / "part", partial=True)) == ["0.png", "2.png"]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_damaged_tags_are_taken_off(form: str) -> None:
    sink = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(sink, form, exif=b"Exif\0\0garbage")
    data = sink.getvalue()
    if form == "PNG":
        data = with_chunk(encoded(np.full((4, 4, 3), 90, np.uint8)), b"eXIf", b"garbage")
    stored = edit_image(data, Edit(), "a")
    with Image.open(io.BytesIO(stored.data)) as image:
        assert not image.getexif() and np.asarray(image.convert("RGB"))[0, 0].tolist() == [90] * 3


def test_transparent_colours() -> None:
    """PNG's tRNS: of 16-bit grey it is heeded, of 16-bit colours refused, and it catches no new pixels."""
    grey = png_of_16_bits(np.full((4, 4, 1), 40000), colour=0)
    clear = with_chunk(grey, b"tRNS", struct.pack(">H", 40000))
    with pytest.raises(UserError, match="transparent pixels"):
        edit_image(clear, Edit(), "a")
    white = load_image(edit_image(clear, Edit(background="white"), "a").data, "a")
    assert np.asarray(white.convert("RGB")).min() == 255
    assert not edit_image(with_chunk(grey, b"tRNS", struct.pack(">H", 7)), Edit(), "a").pixels.info
    colours = png_of_16_bits(np.full((4, 4, 3), 40000), colour=2)
    with pytest.raises(UserError, match="a transparent colour of 16 bits"):
        edit_image(with_chunk(colours, b"tRNS", struct.pack(">HHH", 1, 2, 3)), Edit(background="white"), "a")
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = 255
    striped = with_chunk(encoded(stripes), b"tRNS", struct.pack(">HHH", 127, 127, 127))
    small = load_image(edit_image(striped, Edit(resize=8), "a").data, "a")
    assert "transparency" not in small.info and small.convert("RGBA").getchannel("A").getextrema() == (
        255,
        255,
    )


def test_of_an_animation_the_first_picture_is_taken() -> None:
    sink = io.BytesIO()
    first, second = (Image.fromarray(np.full((4, 4, 3), grey, np.uint8)) for grey in (50, 200))
    first.save(sink, "PNG", save_all=True, append_images=[second])
    stored = edit_image(sink.getvalue(), Edit(), "a")
    with Image.open(io.BytesIO(stored.data)) as image:
        assert (
            getattr(image, "n_frames", 1) == 1 and np.asarray(image.convert("RGB"))[0, 0].tolist() == [50] * 3
        )
