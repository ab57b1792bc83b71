"""Every fault of a data set is found, with its shard and row; duplicates are reported."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_samples import camera_of, picture, png
from PIL import Image, ImageEnhance

from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.inspect.duplicates import DuplicateGroups, find_duplicates
from mimic3d_platform.data.inspect.inspect_dataset import inspect_dataset
from mimic3d_platform.data.inspect.verify_dataset import verify_dataset
from mimic3d_platform.data.render.render_dataset import sample_cameras

SIDE = 4


def row(number: int, **changes: object) -> dict:
    return {
        "image": png(picture(number, SIDE)),
        "camera": camera_of(number).numpy(),
        "weight": 1.0,
        "mask": png(np.zeros((SIDE, SIDE), np.uint8)),
        "depth": np.full((SIDE, SIDE), np.inf, "<f4").tobytes(),
    } | changes


def write(uri: Path, rows: list[dict], **options) -> str:
    columns = ("image", "camera", "weight", "mask", "depth")
    with DatasetWriter(str(uri), SIDE, {}, columns=columns, **options) as writer:
        for values in rows:
            writer.write(values)
    return str(uri)


def problems(uri: str) -> list[str]:
    return [str(problem) for problem in verify_dataset(uri, here=True).problems]


def test_a_sound_set_has_no_problem(tmp_path: Path) -> None:
    uri = write(tmp_path / "set", [row(number) for number in range(300)], shard_bytes=30_000)
    progress: list[int] = []
    report = verify_dataset(uri, here=True, on_progress=lambda done, total: progress.append(done))
    assert (report.rows, report.problems, report.more) == (300, [], 0)
    assert progress[-1] == 300 and len(progress) == len(open_dataset(uri).shards) > 1


def changed_camera(place: int, value: float) -> np.ndarray:
    camera = camera_of(3).numpy().copy()
    camera[place] = value
    return camera


FAULTS = {
    "cut image": ({"image": png(picture(3, 64))[:90]}, "its image is not a readable image (it is truncated)"),
    "image of noise": ({"image": b"noise"}, "its image is not a readable image (it is broken"),
    "large image": ({"image": png(picture(3, 8))}, "its image is 8×8 and not 4×4"),
    "mask": ({"mask": b""}, "its mask is not a readable image"),
    "nan": ({"camera": changed_camera(3, np.nan)}, "its camera has a number that is not finite"),
    "scaled": ({"camera": changed_camera(0, 2.0)}, "its camera has a pose that is not a rotation"),
    "pixels": ({"camera": changed_camera(16, 525.0)}, "its camera has a focal length that is not between"),
    "weight": ({"weight": -1.0}, "its weight is -1"),
    "depth": ({"depth": b"1234"}, "its depth has 4 bytes and not 64"),
    "depth nan": ({"depth": np.full(16, np.nan, "<f4").tobytes()}, "its depth holds NaN"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_is_named(tmp_path: Path, fault: str) -> None:
    change, words = FAULTS[fault]
    rows = [row(number) for number in range(300)]
    rows[270] |= change
    (found,) = problems(write(tmp_path / "set", rows))
    assert found.startswith("row 270 of part-00000.parquet: ") and words in found


def test_the_problems_of_a_shard_of_noise_are_counted_and_only_some_listed(tmp_path: Path) -> None:
    uri = write(tmp_path / "set", [row(number, image=b"noise") for number in range(50)])
    report = verify_dataset(uri, here=True)
    assert len(report.problems) == 20 and report.more == 30


def test_files_that_do_not_match_the_manifest(tmp_path: Path) -> None:
    uri = write(tmp_path / "set", [row(number) for number in range(90)], shard_bytes=6000)
    names = [shard.path for shard in open_dataset(uri).shards]
    assert len(names) > 3
    folder = tmp_path / "set"
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-5])
    data = bytearray((folder / names[2]).read_bytes())
    data[100] ^= 1
    (folder / names[2]).write_bytes(data)
    shutil.copy(folder / names[3], folder / "part-00099.parquet")
    found = problems(uri)
    assert found[0] == f"{names[0]}: the file is missing"
    assert found[1].startswith(f"{names[1]}: has ") and "bytes and the manifest says" in found[1]
    assert found[2].startswith(f"{names[2]}: is not the file") and "SHA-256 differs" in found[2]
    assert found[3] == "part-00099.parquet: the manifest does not list this file; delete it"
    assert len(found) == 4


def noise(seed: int, side: int = 32) -> Image.Image:
    """A picture of large random patches, unlike all others."""
    patches = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=form, **options)
    return sink.getvalue()


def test_exact_and_near_duplicates_are_reported(tmp_path: Path) -> None:
    pictures = [encoded(noise(seed), "PNG") for seed in range(60)]
    pictures[20] = pictures[41] = pictures[7]
    pictures[50] = encoded(noise(3), "JPEG", quality=92)
    pictures[51] = encoded(ImageEnhance.Brightness(noise(4)).enhance(1.01), "PNG")
    pictures[52] = encoded(noise(5), "PNG", compress_level=0)
    uri = str(tmp_path / "set")
    with DatasetWriter(uri, 32, {}, columns=("image",), shard_bytes=60_000) as writer:
        for data in pictures:
            writer.write({"image": data})
    manifest = open_dataset(uri)
    assert len(manifest.shards) > 1
    found = find_duplicates(uri, manifest, here=True)
    rows = [f"{shard.path} row {number}" for shard in manifest.shards for number in range(shard.rows)]
    assert found.exact == DuplicateGroups(1, 2, [[rows[7], rows[20], rows[41]]])
    assert found.near.groups == 3
    assert found.near.first == [[rows[3], rows[50]], [rows[4], rows[51]], [rows[5], rows[52]]]


def test_the_pictures_of_an_inspection(tmp_path: Path) -> None:
    uri = str(tmp_path / "set")
    cameras = sample_cameras(0, "a", 50)
    with DatasetWriter(uri, SIDE, {}, columns=("image", "camera"), shard_bytes=3000) as writer:
        for number in range(50):
            writer.write({"image": row(number)["image"], "camera": cameras[number].numpy()})
    sheet, plot = tmp_path / "sheet.png", tmp_path / "cameras.png"
    found = inspect_dataset(uri, sheet, cameras_png=plot, duplicates=True)
    assert found["images"] == 50 and found["duplicates"]["exact"]["images"] == 0
    shown = np.asarray(Image.open(sheet))
    assert shown.shape == (5 * (128 + 36), 8 * 128, 3)
    corners = {tuple(shown[line * 164, column * 128]) for line in range(5) for column in range(8)}
    assert len(corners) == 40 and {corner[2] for corner in corners} == {7}, "forty rows, each once"
    assert Image.open(plot).size == (1200, 640)
