"""Every image occurs once per epoch, in an order that neither restarts nor world sizes change."""

import io
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import camera_of, picture, png, row_numbers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mimic3d.training import order
from mimic3d.training.order import EpochOrder
from mimic3d_platform.data.format.dataset import check_trainable, open_dataset, read_cameras, read_row_weights
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.format.manifest import FORMER_MANIFEST, MANIFEST
from mimic3d_platform.data.stream.batches import BatchPlan
from mimic3d_platform.data.stream.cache_files import RowFile
from mimic3d_platform.data.stream.prefetcher import ShardPrefetcher
from mimic3d_platform.data.stream.training_stream import Batch, TrainingStream
from mimic3d_platform.errors import UserError

COUNT = 100
BATCH = 12


def global_rows(uri: str, batches: int, *, world_size: int = 1, nimg: int = 0, **options) -> list[int]:
    """The rows of `batches` global batches, assembled from all ranks."""
    seen: list[list[int]] = [[] for _ in range(batches)]
    for rank in range(world_size):
        options = {"seed": 3, "global_batch": BATCH, "loaders": 0} | options
        with TrainingStream(uri, rank=rank, world_size=world_size, nimg=nimg, **options) as stream:
            # Until the loader processes have started, this process reads the batches; theirs are tested here.
            while not all(process.has_output() for process in getattr(stream._loader, "_processes", ())):
                time.sleep(0.01)
            for index in range(batches):
                images, cameras = next(stream)
                rows = row_numbers(images)
                assert torch.equal(cameras, torch.stack([camera_of(row) for row in rows]))
                seen[index] += rows
    return [row for batch in seen for row in batch]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    return str(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def uri(tiny: str, write_set) -> str:
    if not Path(tiny).exists():
        write_set(tiny, COUNT, shard_bytes=3000)
        assert len(open_dataset(tiny).shards) > 3
    return tiny


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world_size=st.sampled_from([1, 2, 3, 4]), nimg=st.integers(0, 3 * COUNT), batches=st.integers(1, 12))
def test_any_restart_in_any_world_gives_what_would_have_come(
    uri: str, world_size: int, nimg: int, batches: int
) -> None:
    whole = EpochOrder(open_dataset(uri), 3).rows(0, 6 * COUNT).tolist()
    got = global_rows(uri, batches, world_size=world_size, nimg=nimg)
    assert got == whole[nimg : nimg + batches * BATCH]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_image_comes_once_an_epoch(uri: str, world_size: int) -> None:
    rows = global_rows(uri, 3 * COUNT // BATCH, world_size=world_size)
    epochs = [rows[start : start + COUNT] for start in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1] != list(range(COUNT))


def test_the_order_is_the_seeds(uri: str) -> None:
    assert global_rows(uri, 4, seed=1) == global_rows(uri, 4, seed=1) != global_rows(uri, 4, seed=2)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    world_size=st.sampled_from([1, 2, 3]),
    nimg=st.integers(0, 2 * COUNT),
    loaders=st.integers(1, 3),
    batches=st.integers(1, 20),
)
def test_any_number_of_loader_processes_gives_the_same(
    uri: str, world_size: int, nimg: int, loaders: int, batches: int
) -> None:
    whole = EpochOrder(open_dataset(uri), 3).rows(0, 6 * COUNT).tolist()
    got = global_rows(uri, batches, world_size=world_size, nimg=nimg, loaders=loaders)
    assert got == whole[nimg : nimg + batches * BATCH]


def test_a_loader_starts_without_what_only_a_fetch_needs() -> None:
    code = "import sys, mimic3d_platform.data.stream.loader_process; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    loaded = set(done.stdout.split())
    assert "numpy" in loaded, done.stderr
    assert not loaded & {"torch", "pandas", "pyarrow", "pydantic", "boto3"}


def test_what_the_cache_keeps_changes_nothing(
    tmp_path: Path, write_set, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_set(tmp_path / "set", 400, side=16, shard_bytes=20_000, columns=("image", "camera"))
    smallest = sum(RowFile.most_bytes(shard) for shard in manifest.shards)
    rows = []
    for name, bound in (("roomy", 2**30), ("roomy", 2**30), ("tight", smallest)):
        monkeypatch.setenv("MIMIC3D_CACHE", str(tmp_path / name))
        rows.append(global_rows(str(tmp_path / "set"), 80, cache_bytes=bound))
    assert rows[0] == rows[1] == rows[2]
    # The roomy cache holds decoded images too.
    assert len(list((tmp_path / "roomy").glob("*.pixels"))) == len(manifest.shards)
    assert not list((tmp_path / "tight").glob("*.pixels"))
    with pytest.raises(UserError, match=f"needs a cache of at least {smallest} bytes"):
        TrainingStream(str(tmp_path / "set"), global_batch=4, seed=0, cache_bytes=smallest - 1)


def test_a_set_larger_than_a_window_is_shuffled_by_windows(
    tmp_path: Path, write_set, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_set(tmp_path / "set", 2000, columns=("image", "camera"), shard_bytes=10_000)
    shards = len(manifest.shards)
    assert shards > 12
    monkeypatch.setattr(order, "WINDOW_BYTES", 4 * max(shard.bytes for shard in manifest.shards))
    seen = EpochOrder(manifest, 0)
    bounds = np.cumsum([shard.rows for shard in manifest.shards])
    for epoch in range(2):
        rows = seen.rows(2000 * epoch, 2000)
        assert sorted(rows.tolist()) == list(range(2000))
        windows = seen.windows(epoch)
        for window in windows:
            part = rows[window.start : window.stop]
            assert set(np.searchsorted(bounds, part, side="right").tolist()) == set(window.shards)
            assert part.tolist() != sorted(part.tolist())
        sizes = [len(window.shards) for window in windows]
        assert max(sizes) == 4 or max(sizes) == 5
        # The first batch of a training waits for one shard.
        assert sizes[:3] == [1, 2, 4] if epoch == 0 else sizes[0] >= 4
    for first, last in ((0, 0), (0, 500), (700, 700), (1990, 2600)):
        ahead = seen.windows_from(first, last)
        needed = np.searchsorted(bounds, seen.rows(first, last - first + 1), side="right")
        assert {shard for window in ahead for shard in window.shards} >= set(needed.tolist())
        assert len(ahead) == 2 or ahead[-1].start % 2000 <= last % 2000


def test_the_shards_of_the_next_batches_are_prefetched(tmp_path: Path, write_set) -> None:
    manifest = write_set(tmp_path / "set", 600, columns=("image", "camera"), shard_bytes=1000)
    plan = BatchPlan(
        uri=str(tmp_path / "set"),
        manifest=manifest,
        seed=0,
        cache_folder=tmp_path / "cache",
        cache_bytes=2**30,
        skip_bad=False,
        patience_s=None,
        first_position=0,
        batch_size=BATCH,
        stride=BATCH,
    )
    # The epoch begins with small windows: the last batch is in another one than the first.
    last = 6
    windows = EpochOrder(manifest, 0).windows(0)
    assert windows[1].stop <= last * BATCH
    prefetcher = ShardPrefetcher(plan)
    prefetcher.prefetch(0, last)
    needed = EpochOrder(manifest, 0).rows(0, (last + 1) * BATCH)
    bounds = np.cumsum([shard.rows for shard in manifest.shards])
    shards = {manifest.shards[index] for index in np.searchsorted(bounds, needed, side="right")}
    until = time.monotonic() + 20
    while not all((tmp_path / "cache" / f"{shard.sha256}.rows").exists() for shard in shards):
        assert time.monotonic() < until
        time.sleep(0.05)
    prefetcher.close()


def test_a_set_may_have_weights(tmp_path: Path, write_set) -> None:
    write_set(tmp_path / "plain", 12, columns=("image", "camera"))
    assert read_row_weights(str(tmp_path / "plain")) is None
    columns = ("image", "camera", "weight")
    for name, least in (("set", 0.0), ("wrong", -1.0)):
        with DatasetWriter(str(tmp_path / name), 2, {}, columns=columns) as writer:
            for row in range(12):
                values = (png(picture(row, 2)), camera_of(row).numpy(), float(row % 3) + least)
                writer.write(dict(zip(columns, values, strict=True)))
    weights = read_row_weights(str(tmp_path / "set"))
    assert weights is not None and weights.tolist() == [0.0, 1.0, 2.0] * 4
    with pytest.raises(UserError, match=r"weights of .* must be numbers of 0 or more; row 0 has -1"):
        read_row_weights(str(tmp_path / "wrong"))


def test_a_stream_counts_images_and_waiting(uri: str) -> None:
    with TrainingStream(uri, global_batch=BATCH, seed=0, nimg=24, loaders=0) as stream:
        batch = next(stream)
        assert isinstance(batch, Batch) and stream.nimg == 24 + BATCH and stream.wait_seconds > 0
        assert batch.images.shape == (BATCH, 3, 2, 2) and batch.images.dtype == torch.uint8
        assert batch.cameras.shape == (BATCH, 25) and batch.cameras.dtype == torch.float32
    assert list(stream) == []


def test_the_example_in_the_docs_runs(tmp_path: Path, write_set, capsys) -> None:
    write_set(tmp_path / "set", 64)
    page = (Path(__file__).parents[4] / "docs" / "streaming.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    assert "s3://bucket/set" in example
    seen: list[torch.Size] = []
    code = example.replace("s3://bucket/set", str(tmp_path / "set"))
    exec(code.replace("...", "seen.append(images.shape); break"), {"seen": seen})
    assert seen == [(32, 3, 2, 2)]


def test_the_cameras_of_all_rows(uri: str) -> None:
    assert np.array_equal(read_cameras(uri), torch.stack([camera_of(row) for row in range(COUNT)]))


def test_the_same_from_object_storage(uri: str, s3_folder: str, write_set) -> None:
    manifest = write_set(s3_folder, COUNT, shard_bytes=3000)
    assert manifest.fingerprint == open_dataset(uri).fingerprint
    assert global_rows(s3_folder, 12, world_size=2) == global_rows(uri, 12)
    assert global_rows(s3_folder, 3, loaders=1) == global_rows(uri, 3)
    assert np.array_equal(read_cameras(s3_folder), read_cameras(uri))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no data set at"):
        open_dataset(str(tmp_path / "none"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="is empty or not a data set"):
        open_dataset(str(tmp_path / "bare"))


def test_nothing_there_in_object_storage(s3_folder: str) -> None:
    with pytest.raises(UserError, match="there is no data set at s3://"):
        open_dataset(s3_folder)
    with pytest.raises(UserError, match=r"no data set at|no bucket"):
        open_dataset("s3://no-such-bucket/set")


def test_no_cameras(tmp_path: Path, write_set) -> None:
    write_set(tmp_path / "set", 5, columns=("image", "identity"))
    for use in (read_cameras, lambda uri: TrainingStream(uri, global_batch=2, seed=0, loaders=0)):
        with pytest.raises(UserError, match="has no cameras"):
            use(str(tmp_path / "set"))


def test_another_resolution(uri: str) -> None:
    check_trainable(open_dataset(uri), resolution=2)
    with pytest.raises(UserError, match=r"s3://b/x has images of 2×2 and the recipe wants 64×64"):
        check_trainable(open_dataset(uri), resolution=64, where="s3://b/x")


def test_a_batch_that_the_ranks_cannot_share(uri: str) -> None:
    with pytest.raises(UserError, match="a batch of 10 cannot be split among 3 workers"):
        TrainingStream(uri, global_batch=10, world_size=3, seed=0)


def break_shard(folder: Path, how: str) -> None:
    shard = folder / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    if how == "missing":
        shard.unlink()
    elif how == "cut":
        shard.write_bytes(data[:-10])
    else:
        data[40] ^= 1
        shard.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "says"), [("missing", "no such file"), ("cut", "bytes"), ("changed", "SHA-256 differs")]
)
def test_a_broken_shard_is_named(tmp_path: Path, write_set, how: str, says: str) -> None:
    write_set(tmp_path / "set", 5)
    break_shard(tmp_path / "set", how)
    stream = TrainingStream(str(tmp_path / "set"), global_batch=2, seed=0, loaders=0)
    with pytest.raises(UserError, match=says) as error:
        next(stream)
    assert "part-00000.parquet" in str(error.value) and "\n" not in str(error.value)


def test_an_image_of_another_size_is_named(tmp_path: Path, write_set) -> None:
    write_set(tmp_path / "set", 5, side=4)
    manifest = open_dataset(str(tmp_path / "set"))
    (tmp_path / "set" / MANIFEST).unlink()
    (tmp_path / "set" / FORMER_MANIFEST).write_bytes(replace(manifest, resolution=8).to_json())
    with pytest.raises(UserError, match=r"row \d of .*part-00000.parquet holds an image of 4×4, not 8×8"):
        next(TrainingStream(str(tmp_path / "set"), global_batch=2, seed=0, loaders=0))


def test_pictures_say_their_row(tmp_path: Path, write_set) -> None:
    """A check of the tests themselves: the PNG of a row decodes to its number."""
    import pyarrow.parquet as pq

    write_set(tmp_path / "set", 300)
    stored = pq.read_table(tmp_path / "set" / "part-00000.parquet")["image"][299].as_py()
    assert Image.open(io.BytesIO(stored)).getpixel((0, 0)) == (43, 1, 7)
