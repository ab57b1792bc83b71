"""Faults between storage and a batch: transient ones change nothing, the others give one clear line.

The object storage is real; a proxy before it interrupts, delays, corrupts and refuses requests.
"""

import concurrent.futures
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from data_samples import camera_of, picture, png, row_numbers

from fault_proxy import FaultProxy
from mimic3d.training.order import EpochOrder
from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.stream.cache_files import RowFile
from mimic3d_platform.data.stream.shard_cache import ShardCache
from mimic3d_platform.data.stream.training_stream import TrainingStream
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings

COUNT, BATCH, SEED = 60, 10, 5
# How long storage is unreachable in the test of an outage; set the variable to test longer ones.
CUT_S = float(os.environ.get("MIMIC3D_TEST_CUT_S", "2"))


@pytest.fixture(scope="module")
def folder(stack) -> Iterator[str]:
    """A set of several shards in object storage."""
    uri = f"s3://mimic3d/test-faults-{os.getpid()}"
    with DatasetWriter(uri, 2, {}, columns=("image", "camera"), shard_bytes=1000) as writer:
        for row in range(COUNT):
            writer.write({"image": png(picture(row, 2)), "camera": camera_of(row).numpy()})
    assert len(open_dataset(uri).shards) >= 3
    yield uri
    storage.delete_tree(uri)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for this test alone, and little patience."""
    monkeypatch.setenv("MIMIC3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MIMIC3D_PATIENCE_S", "1")
    return tmp_path / "cache"


@pytest.fixture
def proxy(stack, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(get_settings().s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def expected(uri: str, batches: int, nimg: int = 0) -> list[int]:
    return EpochOrder(open_dataset(uri), SEED).rows(nimg, batches * BATCH).tolist()


def stream_of(uri: str, **options) -> TrainingStream:
    return TrainingStream(uri, **{"global_batch": BATCH, "seed": SEED, "loaders": 0} | options)


def rows_of(uri: str, batches: int = COUNT // BATCH, **options) -> list[int]:
    with stream_of(uri, **options) as stream:
        return [row for _ in range(batches) for row in row_numbers(next(stream).images)]


def first_error(uri: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(uri, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Transient faults change nothing.


TRANSIENT = {
    "a bit flipped on its way": lambda proxy: proxy.corrupt(path="part-", times=2),
    "a transfer cut short": lambda proxy: proxy.truncate(path="part-", times=2),
    "a busy server": lambda proxy: proxy.answer(503, path="part-", times=4),
    "a server out of order": lambda proxy: proxy.answer(500, path="part-", times=4),
    "a slow server": lambda proxy: proxy.throttle(10_000, path="part-"),
    "a late server": lambda proxy: proxy.delay(0.3, path="part-"),
}


@pytest.mark.parametrize("what", TRANSIENT)
def test_a_transient_fault_changes_nothing(
    what: str, proxy: FaultProxy, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMIC3D_PATIENCE_S", "60")
    whole = expected(folder, COUNT // BATCH)
    fault = TRANSIENT[what](proxy)
    assert rows_of(folder) == whole
    assert fault.hits >= (fault.times or 3)


@pytest.mark.timeout(60 + 5 * CUT_S)
def test_an_outage_is_waited_out(
    proxy: FaultProxy, cache: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMIC3D_PATIENCE_S", str(30 + 2 * CUT_S))
    whole = expected(folder, COUNT // BATCH)
    with stream_of(folder, loaders=1) as stream:
        rows = row_numbers(next(stream).images)
        # The process that replaces this one finds neither cache nor storage.
        os.kill(stream.loader_pids[0], 9)
        for shard in stream.manifest.shards:
            ShardCache(cache, 2**30).discard(shard)
        proxy.cut(CUT_S)
        rows += [row for _ in range(COUNT // BATCH - 1) for row in row_numbers(next(stream).images)]
        assert rows == whole and stream.wait_seconds > 0.8 * CUT_S


# Lasting faults give one line that names the shard and the row.


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda proxy: proxy.corrupt(path="part-"), "SHA-256 differs"),
        (lambda proxy: proxy.answer(503, path="part-"), "too busy or out of order"),
        (lambda proxy: proxy.answer(403, method="GET", path="part-"), "have expired; renew"),
        (lambda proxy: proxy.answer(403, path="part-"), "have expired; renew"),
        (lambda proxy: proxy.answer(403, method="HEAD", path="part-"), "right and not expired"),
        (lambda proxy: proxy.truncate(path="part-"), "nothing answers at"),
    ],
)
def test_a_lasting_fault_is_one_line(proxy: FaultProxy, folder: str, spoil, says: str) -> None:
    spoil(proxy)
    said = first_error(folder)
    assert says in said and ".parquet" in said and "(wanted for its row " in said


def test_an_outage_that_outlasts_patience_is_one_line(proxy: FaultProxy, folder: str) -> None:
    proxy.delay(1.0, path="part-")
    with stream_of(folder) as stream:
        proxy.cut()
        with pytest.raises(UserError, match=r"\.parquet: nothing answers at"):
            next(stream)


def test_wrong_credentials_are_one_line_at_once(
    proxy: FaultProxy, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMIC3D_PATIENCE_S", "100")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    began = time.monotonic()
    said = first_error(folder)
    assert "AWS_SECRET_ACCESS_KEY" in said and "not-the-secret" not in said
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("how", ["missing", "replaced"])
def test_a_shard_that_is_gone_or_another_is_one_line(
    how: str, cache: Path, s3_folder: str, write_set
) -> None:
    shard = write_set(s3_folder, 40, columns=("image", "camera")).shards[0]
    place = storage.join(s3_folder, shard.path)
    if how == "missing":
        storage.delete_tree(place)
    else:
        storage.write_bytes(place, storage.read_bytes(place)[:-1] + b"!")
    said = first_error(s3_folder)
    assert place in said
    assert ("there is nothing there" if how == "missing" else "it is damaged or was replaced") in said


# The cache.


def test_each_shard_is_fetched_once_for_all_processes_of_a_machine(proxy: FaultProxy, folder: str) -> None:
    shards = open_dataset(folder).shards
    proxy.delay(0.3, method="GET", path="part-")  # So that all want them at the same time.
    with concurrent.futures.ThreadPoolExecutor() as jobs:
        ranks = [
            jobs.submit(rows_of, folder, 6, rank=rank, world_size=2, loaders=loaders)
            for loaders in (2, 0)
            for rank in (0, 1)
        ]
        seen = [job.result() for job in ranks]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(COUNT))
    places = [f"{folder.removeprefix('s3:/')}/{shard.path}" for shard in shards]
    assert [proxy.count("GET", place) for place in places] == [1] * len(places)


def test_the_bound_holds_and_the_least_recently_used_goes_first(
    cache: Path, tmp_path: Path, write_set
) -> None:
    manifest = write_set(tmp_path / "set", 200, side=16, shard_bytes=4000, columns=("image", "camera"))
    size = max(RowFile.most_bytes(shard) for shard in manifest.shards)
    kept = ShardCache(cache, 3 * size)
    uri, (first, second, third, fourth, *_) = str(tmp_path / "set"), manifest.shards
    for shard in (first, second):
        kept.open(uri, shard).close()
        time.sleep(0.02)
    kept.open(uri, first).close()
    in_use = kept.open(uri, third)
    while kept.used() + RowFile.most_bytes(fourth) <= kept.limit:
        kept.limit -= 256
    kept.ensure(uri, fourth)
    names = {path.stem for path in cache.glob("*.rows")}
    assert second.sha256 not in names and {first.sha256, third.sha256, fourth.sha256} <= names
    assert kept.used() <= kept.limit
    # Open files are not evicted; if all are open, the error says so.
    kept.limit = in_use.size + 100
    with pytest.raises(UserError, match=r"all of it is in use; raise data.cache_bytes"):
        kept.ensure(uri, second)
    in_use.close()


def test_a_damaged_cache_is_mended(cache: Path, folder: str) -> None:
    whole = expected(folder, COUNT // BATCH)
    assert rows_of(folder) == whole
    files = sorted(cache.glob("*.rows"))
    files[0].write_bytes(files[0].read_bytes()[:-5])
    content = bytearray(files[1].read_bytes())
    content[:300] = bytes(300)
    files[1].write_bytes(content)
    for path in cache.glob("*.pixels"):
        content = bytearray(path.read_bytes())
        content[4:] = bytes(len(content) - 4)
        path.write_bytes(content)
    assert rows_of(folder) == whole


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_cache_that_cannot_be_made_is_one_line(
    loaders: int, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("MIMIC3D_CACHE", str(tmp_path / "file"))
    assert f"cannot keep shards in {tmp_path / 'file'}: " in first_error(folder, loaders=loaders)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB that a file fills."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path / "disk")]
    try:
        made = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("this user may not mount a disk to fill")
    with contextlib.suppress(OSError):
        (tmp_path / "disk" / "filler").write_bytes(bytes(64 * 1024))
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


def test_a_full_cache_disk_is_one_line_and_passes_when_there_is_room(
    tiny_disk: Path, cache: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIMIC3D_CACHE", str(tiny_disk / "cache"))
    said = first_error(folder)
    assert "no space is left on the device" in said and ".parquet" in said and "MIMIC3D_CACHE" in said
    monkeypatch.setenv("MIMIC3D_PATIENCE_S", "30")
    relief = threading.Timer(1.0, (tiny_disk / "filler").unlink)
    relief.start()
    assert rows_of(folder) == expected(folder, COUNT // BATCH)


# The loaders.


def test_a_killed_loader_is_replaced_and_nothing_is_lost(cache: Path, folder: str) -> None:
    with stream_of(folder, loaders=2) as stream:
        rows: list[int] = []
        deadline = time.monotonic() + 60
        while stream.loader_restarts == 0 and time.monotonic() < deadline:
            rows += row_numbers(next(stream).images)
            if len(rows) == 4 * BATCH:
                os.kill(stream.loader_pids[0], 9)
        rows += [row for _ in range(8) for row in row_numbers(next(stream).images)]
        assert rows == expected(folder, len(rows) // BATCH) and stream.loader_restarts == 1
        pids = stream.loader_pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_loaders_that_are_killed_again_and_again_are_one_line(cache: Path, folder: str) -> None:
    stream = stream_of(folder, loaders=1)
    stop = threading.Event()

    def kill_all() -> None:
        while not stop.wait(0.02):
            for pid in stream.loader_pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pytest.raises(UserError, match=r"ended 4 times before its batch \(signal 9\)"):
            for _ in range(100):
                next(stream)
    finally:
        stop.set()
        killer.join()


def test_loaders_end_with_a_parent_that_is_killed(cache: Path, folder: str) -> None:
    code = (
        "import sys, time; from mimic3d_platform.data.stream.training_stream import TrainingStream\n"
        "stream = TrainingStream(sys.argv[1], global_batch=10, seed=0, loaders=2); next(stream)\n"
        "print(*stream.loader_pids, flush=True); time.sleep(600)"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    parent = subprocess.Popen(
        [sys.executable, "-c", code, folder],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 300
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# Bad images.


@pytest.fixture
def spoilt(tmp_path: Path) -> str:
    """A set in which rows 7 and 21 are not images, though every checksum is right."""
    uri = str(tmp_path / "spoilt")
    with DatasetWriter(uri, 2, {}, columns=("image", "camera"), shard_bytes=1000) as writer:
        for row in range(COUNT):
            image = png(picture(row, 2))
            damaged = {7: image[:40], 21: b"no image"}.get(row, image)
            writer.write({"image": damaged, "camera": camera_of(row).numpy()})
    return uri


def test_a_bad_image_is_one_line_that_names_shard_and_row(cache: Path, spoilt: str) -> None:
    said = first_error(spoilt)
    assert "row " in said and ".parquet holds no readable image" in said and "data.max_bad_images" in said


def test_bad_images_within_the_bound_are_replaced_and_counted(cache: Path, spoilt: str) -> None:
    replaced = [{7: 8, 21: 22}.get(row, row) for row in expected(spoilt, COUNT // BATCH)]
    with stream_of(spoilt, max_bad_images=2, loaders=1) as stream:
        rows = [row for _ in range(COUNT // BATCH) for row in row_numbers(next(stream).images)]
        assert rows == replaced and stream.bad_images == 2
    for world_size in (2, 5):
        share = BATCH // world_size
        for rank in range(world_size):
            rows = rows_of(spoilt, max_bad_images=2, rank=rank, world_size=world_size)
            slices = [replaced[at + rank * share :][:share] for at in range(0, COUNT, BATCH)]
            assert rows == [row for part in slices for row in part]


def test_more_bad_images_than_allowed_are_one_line(cache: Path, spoilt: str) -> None:
    said = first_error(spoilt, max_bad_images=1)
    assert "more than 1 images that cannot be decoded" in said and "raise data.max_bad_images" in said
