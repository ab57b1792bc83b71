"""Places of schemes that fsspec knows: all works as in S3 and locally, and what cannot is one line."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_samples import camera_of, picture, png

from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.stream.training_stream import TrainingStream
from mimic3d_platform.errors import UserError


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    return f"memory://tests/{request.node.name}"


def test_what_is_written_is_read_listed_copied_and_deleted(folder: str, tmp_path: Path) -> None:
    storage.ensure_bucket(folder)
    storage.write_bytes(f"{folder}/a/one.bin", b"one")
    with storage.atomic_write(f"{folder}/two.bin") as file:
        file.write(b"two")
    assert storage.read_bytes(f"{folder}/a/one.bin") == b"one"
    assert storage.file_sizes(folder) == {f"{folder}/a/one.bin": 3, f"{folder}/two.bin": 3}
    assert storage.exists(f"{folder}/a") and not storage.exists(f"{folder}/b")
    assert storage.copy_tree(folder, tmp_path / "down") == 2
    assert (tmp_path / "down" / "a" / "one.bin").read_bytes() == b"one"
    assert storage.copy_tree(tmp_path / "down", f"{folder}-up") == 2
    assert storage.copy_tree(f"{folder}-up", f"{folder}/again") == 2
    assert storage.read_bytes(f"{folder}/again/two.bin") == b"two"
    storage.delete_tree(f"{folder}/again")
    storage.delete_tree(f"{folder}/never-there")
    assert storage.list_files(f"{folder}/again") == [] and len(storage.list_files(folder)) == 2


def test_a_file_that_was_not_finished_does_not_appear(folder: str) -> None:
    with pytest.raises(RuntimeError), storage.atomic_write(f"{folder}/never.bin") as file:
        file.write(b"half")
        raise RuntimeError
    assert not storage.exists(f"{folder}/never.bin")


def test_a_data_set_is_written_and_streamed(folder: str) -> None:
    with DatasetWriter(folder, 2, {}, columns=("image", "camera"), shard_bytes=1000) as writer:
        for row in range(20):
            writer.write({"image": png(picture(row, 2)), "camera": camera_of(row).numpy()})
    manifest = open_dataset(folder)
    files, path = storage.arrow_filesystem(storage.join(folder, manifest.shards[0].path))
    with files.open_input_file(path) as stream:
        assert pq.ParquetFile(stream).metadata.num_rows == manifest.shards[0].rows
    with TrainingStream(folder, global_batch=4, seed=0, loaders=0) as stream:
        assert next(stream).images.shape[0] == 4


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://bucket/key", "gs:// needs a package that is not installed (Please install gcsfs"),
        ("ftl://bucket/key", "unknown scheme 'ftl'; use s3://bucket/key"),
        ("memory://tests/never-there", "there is nothing there; check the URI"),
        ("http://127.0.0.1:9/file", "http://127.0.0.1:9/file"),
    ],
)
def test_what_cannot_be_read_is_one_line(uri: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        storage.read_bytes(uri)
    assert says in str(caught.value) and uri in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_scheme_cannot_do_is_one_line() -> None:
    with (
        pytest.raises(UserError, match="cannot delete ftp://host/file: ftp:// places do not allow that"),
        storage.translate_errors("ftp://host/file", "delete"),
    ):
        raise NotImplementedError


def test_a_remote_place_is_never_taken_for_a_local_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("s3://bucket/key", "memory://bucket/file"):
        with pytest.raises(UserError, match=f"{uri} is not a local path"):
            storage.local_path(uri)
    assert list(tmp_path.iterdir()) == []
