"""`--centre` and `--scale` put a scene of any origin and unit where the box of a generator is."""

from pathlib import Path

import numpy as np
import pytest
from posed_scene import Scene, cameras_around, nerf_files, write_folder

from mimic3d_platform.data.format.dataset import open_dataset, read_cameras
from mimic3d_platform.data.format.scene import scene_of
from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset
from mimic3d_platform.errors import UserError

CENTRE, UNIT = np.array([3.0, -2.0, 12.0]), 25.0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Grey photographs of an object that is 25 times as large as its box should be, about another point."""
    labels = cameras_around(8).double().numpy()
    labels[:, 18] = labels[:, 21] = 0.5
    for axis, column in enumerate((3, 7, 11)):
        labels[:, column] = labels[:, column] * UNIT + CENTRE[axis]
    images = np.full((8, 16, 16, 3), 128, np.uint8)
    scene = Scene(images, labels, tuple(f"photo{index}.png" for index in range(8)))
    return write_folder(tmp_path / "photographs", nerf_files(scene, pixels=False))


def ingest(source: Path, dest: Path, **options) -> np.ndarray:
    """The cameras of the set, (n, 25)."""
    ingest_dataset(str(source), str(dest), here=True, **options)
    return read_cameras(str(dest))


@pytest.mark.parametrize(("centre", "scale"), [("auto", "auto"), ("3,-2,12", "0.04")])
def test_the_scene_is_where_the_box_is(source: Path, tmp_path: Path, centre: str, scale: str) -> None:
    before = ingest(source, tmp_path / "as it is")
    after = ingest(source, tmp_path / "placed", centre=centre, scale=scale)
    found = scene_of(open_dataset(str(tmp_path / "placed")), after)
    assert found.pivot == pytest.approx((0, 0, 0), abs=1e-3)
    if scale == "auto":
        assert found.box_warp == pytest.approx(1.0, rel=0.02)
    else:
        assert np.linalg.norm(after[:, [3, 7, 11]], axis=1) == pytest.approx(1.7, rel=1e-3)
    # Directions and lenses are the same; positions are moved, then scaled, all alike.
    rest = [column for column in range(25) if column not in (3, 7, 11)]
    assert np.array_equal(before[:, rest], after[:, rest])
    factor = 1 / UNIT if scale != "auto" else found.distances[0] / (1.7 * UNIT)
    moved = (before[:, [3, 7, 11]] - CENTRE) * factor
    assert after[:, [3, 7, 11]] == pytest.approx(moved, abs=2e-2 * factor * UNIT)


def test_the_placement_is_a_part_of_the_plan(source: Path, tmp_path: Path) -> None:
    ingest(source, tmp_path / "set", scale="0.04")
    with pytest.raises(UserError, match="--overwrite"):
        ingest(source, tmp_path / "set", scale="0.05")
    ingest(source, tmp_path / "set", scale="0.04")
    provenance = open_dataset(str(tmp_path / "set")).provenance
    assert provenance["placement"] == {"centre": [0, 0, 0], "scale": 0.04}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"centre": "middle"}, "--centre middle: give auto"),
        ({"centre": "1,2"}, "--centre 1,2"),
        ({"centre": "1,2,nan"}, "finite"),
        ({"scale": "-1"}, "--scale -1: give a positive number"),
        ({"scale": "big"}, "--scale big"),
    ],
)
def test_what_is_no_place_and_no_number_is_refused(source: Path, tmp_path: Path, options, words) -> None:
    with pytest.raises(UserError, match=words):
        ingest(source, tmp_path / "set", **options)
