"""Other programs read a data set, since it is plain Parquet; the code is that of docs/data.md."""

import io
from pathlib import Path

import numpy as np
import pytest
from data_samples import camera_of, picture, png
from PIL import Image

from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset

COUNT = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers") / "set"


@pytest.fixture(autouse=True)
def written(folder: Path, write_set) -> None:
    if not folder.exists():
        assert len(write_set(folder, COUNT, side=4, shard_bytes=60_000).shards) > 1


def test_duckdb(folder: Path) -> None:
    import duckdb

    found = duckdb.sql(
        f"SELECT identity, count(*) AS images, avg(camera[8]) AS height "
        f"FROM '{folder}/part-*.parquet' GROUP BY identity ORDER BY identity"
    ).fetchall()
    assert len(found) == COUNT // 3 and sum(images for _, images, _ in found) == COUNT
    assert found[0][2] == pytest.approx(float(camera_of(0)[7]), abs=1e-4)


def test_duckdb_reads_the_folder(folder: Path) -> None:
    import duckdb

    assert duckdb.sql(f"SELECT count(*) FROM '{folder}/*.parquet'").fetchall() == [(COUNT,)]


def test_pandas(folder: Path) -> None:
    import pandas

    frame = pandas.read_parquet(folder)
    assert len(frame) == COUNT and list(frame.columns) == ["image", "camera", "identity", "depth", "mask"]
    image = Image.open(io.BytesIO(frame.image[599]))
    assert np.array_equal(np.asarray(image), picture(599, 4))
    assert np.stack(frame.camera).shape == (COUNT, 25)


def test_pyarrow(folder: Path) -> None:
    import pyarrow.dataset
    import pyarrow.parquet as pq

    assert pq.read_table(folder)["identity"].to_pylist()[3] == "thing-1"
    data = pyarrow.dataset.dataset(folder)
    assert data.count_rows() == COUNT
    assert data.to_table(columns=["identity"])["identity"].to_pylist()[3] == "thing-1"


def test_polars_and_others_that_read_every_file(folder: Path) -> None:
    """What the readers that skip no file by its name ask for: nothing but Parquet files of one schema."""
    import pyarrow.parquet as pq

    files = sorted(folder.rglob("*"))
    assert {file.suffix for file in files} == {".parquet"}
    tables = [pq.ParquetFile(file).read() for file in files]
    first = tables[0].schema.remove_metadata()
    assert all(table.schema.remove_metadata().equals(first) for table in tables)
    assert sum(len(table) for table in tables) == COUNT
    polars = pytest.importorskip("polars")
    assert len(polars.read_parquet(folder)) == COUNT


def test_ray_data(stack, folder: Path) -> None:
    import ray

    from mimic3d_platform.cluster.connect import join_ray

    join_ray()
    assert ray.data.read_parquet(str(folder)).count() == COUNT


def test_a_folder_in_object_storage(stack, s3_folder: str, write_set) -> None:
    import pandas
    import pyarrow.dataset
    import pyarrow.parquet as pq

    from mimic3d_platform import storage

    write_set(s3_folder, 30, side=4, shard_bytes=3000)
    files, path = storage.arrow_filesystem(s3_folder)
    assert len(pq.read_table(path, filesystem=files)) == 30
    assert pyarrow.dataset.dataset(path, filesystem=files).count_rows() == 30
    assert len(pandas.read_parquet(path, filesystem=files)) == 30


def test_hugging_face(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    for data in (
        datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")),
        datasets.load_dataset(
            "parquet",
            data_files=str(folder / "part-*.parquet"),
            split="train",
            cache_dir=str(tmp_path / "cache"),
        ),
    ):
        row = data.cast_column("image", datasets.Image())[599]
        assert data.num_rows == COUNT and len(row["camera"]) == 25
        assert np.array_equal(np.asarray(row["image"]), picture(599, 4))


def test_the_documentation_s_table_is_ingested_as_it_stands(tmp_path: Path) -> None:
    text = (Path(__file__).parents[4] / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.split("```csv\n")[1].split("```")[0]
    (tmp_path / "set" / "red").mkdir(parents=True)
    (tmp_path / "set" / "cameras.csv").write_text(table, encoding="utf-8")
    (tmp_path / "set" / "red" / "0001.png").write_bytes(png(picture(1, 4)))
    manifest = ingest_dataset(str(tmp_path / "set"), str(tmp_path / "out"), here=True)
    assert manifest.count == 1 and manifest.columns[-2:] == ["weight", "paint"]
    assert manifest.cameras["pitch"] == pytest.approx([0, 0]) and manifest.cameras["radius"][
        0
    ] == pytest.approx(1.7)
