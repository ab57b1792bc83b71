"""A data set is plain Parquet in shards of bounded size, with a manifest that is written last."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.format.manifest import FORMER_CARD, FORMER_MANIFEST, MANIFEST, Manifest
from mimic3d_platform.data.format.manifest_file import read_card
from mimic3d_platform.data.format.parquet_schema import row_group_rows
from mimic3d_platform.errors import UserError


def test_a_set_is_parquet_that_any_reader_opens(tmp_path: Path, write_set) -> None:
    manifest = write_set(tmp_path / "set", 600)
    table = pq.read_table(tmp_path / "set" / "part-00000.parquet")
    assert table.column_names == ["image", "camera", "identity", "depth", "mask"]
    assert table.schema.field("camera").type.list_size == 25
    assert manifest.count == 600 and manifest.identities == 200
    assert len(table.to_pandas()) == manifest.shards[0].rows


def test_row_groups_and_shards_are_bounded_and_digested(tmp_path: Path, write_set) -> None:
    manifest = write_set(tmp_path / "set", 900, shard_bytes=60_000)
    assert len(manifest.shards) > 1
    for shard in manifest.shards:
        data = (tmp_path / "set" / shard.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        metadata = pq.read_metadata(tmp_path / "set" / shard.path)
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        assert sum(sizes) == shard.rows and all(size == 256 for size in sizes[:-1]) and sizes[-1] <= 256


def test_the_manifest_survives_a_round_trip_and_holds_camera_ranges(tmp_path: Path, write_set) -> None:
    manifest = write_set(tmp_path / "set", 10, licences=["CC0", "CC-BY", "CC0"])
    assert open_dataset(str(tmp_path / "set")) == manifest
    assert manifest.cameras["radius"] == pytest.approx([1.7, 1.7])
    assert manifest.cameras["yaw"] == pytest.approx([0.0, 0.009], abs=1e-5)
    assert manifest.cameras["pitch"] == pytest.approx([0.3, 0.3])
    assert manifest.licences == ["CC-BY", "CC0"]
    assert "CC-BY" in read_card(str(tmp_path / "set")).decode()


def test_the_fingerprint_is_of_the_rows(tmp_path: Path, write_set) -> None:
    first = write_set(tmp_path / "a", 20)
    assert write_set(tmp_path / "b", 20).fingerprint == first.fingerprint
    assert write_set(tmp_path / "c", 21).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "other"}, "not of the format"),
        ({"extra": 1}, "unknown fields extra"),
        ({"count": 11}, "counts 11"),
        ({"count": "10"}, "a count that is not of type int"),
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"cameras": {"roll": [0, 1]}}, "camera range 'roll'"),
        ({"shards": [{"path": "x"}]}, "shard 0"),
    ],
)
def test_a_manifest_is_read_strictly(tmp_path: Path, write_set, change: dict, says: str) -> None:
    content = json.loads(write_set(tmp_path / "set", 10).to_json()) | change
    with pytest.raises(UserError, match=says) as error:
        Manifest.from_json(json.dumps(content).encode(), "s3://b/set")
    assert "s3://b/set" in str(error.value) and "\n" not in str(error.value)


def test_a_manifest_that_lacks_a_field_or_is_no_json(tmp_path: Path, write_set) -> None:
    content = json.loads(write_set(tmp_path / "set", 10).to_json())
    del content["resolution"]
    with pytest.raises(UserError, match="lacks the fields resolution"):
        Manifest.from_json(json.dumps(content).encode(), "x")
    with pytest.raises(UserError, match="not JSON"):
        Manifest.from_json(b"{", "x")


def test_a_writer_that_fails_leaves_a_set_seen_as_half_written(tmp_path: Path, write_set) -> None:
    uri = str(tmp_path / "set")
    row = {"image": b"x" * 100, "identity": "a"}
    with (
        pytest.raises(RuntimeError),
        DatasetWriter(uri, 2, {}, columns=("image", "identity"), shard_bytes=150) as writer,
    ):
        for _ in range(3):
            writer.write(row)
        raise RuntimeError
    with pytest.raises(UserError, match="half-written"):
        open_dataset(uri)


def test_a_complete_set_is_overwritten_only_on_request(tmp_path: Path, write_set) -> None:
    write_set(tmp_path / "set", 900, shard_bytes=60_000)
    with pytest.raises(UserError, match="already holds a data set"):
        write_set(tmp_path / "set", 10)
    manifest = write_set(tmp_path / "set", 10, overwrite=True)
    assert open_dataset(str(tmp_path / "set")) == manifest
    assert [file.name for file in (tmp_path / "set").glob("part-*.parquet")] == [manifest.shards[0].path]


def test_a_set_that_is_being_replaced_is_whole_until_the_new_manifest(tmp_path: Path, write_set) -> None:
    uri = str(tmp_path / "set")
    old = write_set(uri, 300, shard_bytes=20_000)
    with (
        pytest.raises(RuntimeError),
        DatasetWriter(uri, 2, {}, columns=("image", "identity"), shard_bytes=150, overwrite=True) as writer,
    ):
        for _ in range(5):
            writer.write({"image": b"x" * 100, "identity": "a"})
        raise RuntimeError
    assert open_dataset(uri) == old
    for shard in old.shards:
        data = (tmp_path / "set" / shard.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard.sha256
    new = write_set(uri, 5, overwrite=True)
    assert {path.name for path in (tmp_path / "set").iterdir()} == {
        "_manifest.parquet",
        new.shards[0].path,
    }


def test_other_people_s_files_are_left_alone(tmp_path: Path, write_set) -> None:
    for name in ("thesis.parquet", "part-00000.parquet/notes.txt"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True)
        (tmp_path / "mine" / name).write_text("mine", encoding="utf-8")
        with pytest.raises(UserError, match=rf"holds other files \({name}\) and no data set"):
            write_set(tmp_path / "mine", 5)
        shutil.rmtree(tmp_path / "mine")
    write_set(tmp_path / "set", 5)
    for name in ("set/sheet.png", "set/old/part-00001.parquet", "set/extra.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine", encoding="utf-8")
    write_set(tmp_path / "set", 6, overwrite=True)
    assert (tmp_path / "set/sheet.png").exists() and (tmp_path / "set/extra.parquet").exists()
    assert (tmp_path / "set/old/part-00001.parquet").exists()


def test_row_groups_of_large_images_are_small(tmp_path: Path, write_set) -> None:
    assert [row_group_rows(side) for side in (16, 128, 256, 512, 1024, 8192)] == [256, 256, 64, 16, 4, 1]
    manifest = write_set(tmp_path / "set", 70, side=256)
    metadata = pq.read_metadata(tmp_path / "set" / manifest.shards[0].path)
    assert manifest.row_group_rows == 64
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [64, 6]


def test_columns_of_the_user_s_own_pass_through(tmp_path: Path) -> None:
    columns, extras = ("image", "weight", "paint", "year"), {"paint": "string", "year": "int64"}
    with DatasetWriter(str(tmp_path / "set"), 2, {}, columns=columns, extras=extras) as writer:
        writer.write({"image": b"x", "weight": 0.5, "paint": None, "year": 1961})
    table = pq.read_table(tmp_path / "set" / "part-00000.parquet")
    assert table.to_pylist() == [{"image": b"x", "weight": 0.5, "paint": None, "year": 1961}]
    assert str(table.schema.field("weight").type) == "float"


def test_a_set_of_no_rows_is_refused(tmp_path: Path, write_set) -> None:
    with pytest.raises(UserError, match="no image"):
        write_set(tmp_path / "set", 0)


def test_sets_of_older_versions_are_read_and_replaced(tmp_path: Path, write_set) -> None:
    folder = tmp_path / "set"
    manifest = write_set(folder, 5)
    (folder / MANIFEST).unlink()
    (folder / FORMER_MANIFEST).write_bytes(manifest.to_json())
    (folder / FORMER_CARD).write_text("the card", encoding="utf-8")
    assert open_dataset(str(folder)) == manifest and read_card(str(folder)) == b"the card"
    with pytest.raises(UserError, match="already holds a data set"):
        write_set(folder, 6)
    assert open_dataset(str(folder)) == manifest
    new = write_set(folder, 6, overwrite=True)
    assert open_dataset(str(folder)) == new and new.count == 6
    assert {path.name for path in folder.iterdir()} == {MANIFEST, new.shards[0].path}
