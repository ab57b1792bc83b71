"""Who takes part in the data benchmark. Each yields batches of decoded images and cameras, for ever.

A contestant is a function of (uri, cache, side, workers): the folder of all formats in object storage, an
empty local folder, the images' side, and how many processes decode. All shuffle, decode with the same
decoder, and give (images (n, 3, R, R) uint8, cameras (n, 25) float32).
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mimic3d_platform import storage
from mimic3d_platform.data.stream.decode_images import decode_into

BATCH = 32
RAW = "raw decoding"
_LEAST_BATCHES = 12
Batches = Iterator[Any]


def mimic3d(uri: str, cache: Path, side: int, workers: int, cache_bytes: int = 16 * 2**30) -> Batches:
    from mimic3d_platform.data.stream.training_stream import TrainingStream

    os.environ["MIMIC3D_CACHE"] = str(cache)
    options = {"cache_bytes": cache_bytes, "loaders": workers}
    yield from TrainingStream(f"{uri}/parquet", global_batch=BATCH, seed=0, **options)


def mimic3d_decoding(uri: str, cache: Path, side: int, workers: int) -> Batches:
    """As where the decoded set is larger than the cache: each image is decoded every time."""
    from mimic3d_platform.data.format.dataset import open_dataset
    from mimic3d_platform.data.stream.cache_files import RowFile

    stored = sum(RowFile.most_bytes(shard) for shard in open_dataset(f"{uri}/parquet").shards)
    return mimic3d(uri, cache, side, workers, cache_bytes=stored)


def mosaicml(uri: str, cache: Path, side: int, workers: int) -> Batches:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]

    clean_stale_shared_memory()  # What the measurement before left would be taken for this one's.

    class Decoded(StreamingDataset):
        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            row = super().__getitem__(index)
            return _decoded(row["image"], side), row["camera"]

    data = Decoded(remote=f"{uri}/mds", local=str(cache), shuffle=True, batch_size=BATCH)
    loader = DataLoader(data, BATCH, num_workers=workers, persistent_workers=True)
    while True:
        yield from loader


def webdataset(uri: str, cache: Path, side: int, workers: int) -> Batches:
    """First over signed addresses, as from any store; then from local files, as its cache has them."""
    import webdataset as wds

    client = storage.s3_client()
    bucket, folder = storage.split_s3(f"{uri}/tar")
    names = [place.rsplit("/", 1)[-1] for place in storage.list_files(f"{uri}/tar")]
    signed = [
        client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": f"{folder}/{name}"})
        for name in names
    ]

    def loader(places: list[str]) -> Batches:
        data = wds.WebDataset(places, shardshuffle=len(places), nodesplitter=None, empty_check=False)
        data = data.shuffle(500).to_tuple("png", "bin")
        data = data.map_tuple(lambda png: _decoded(png, side), lambda raw: np.frombuffer(raw, "<f4"))
        data = data.batched(BATCH, partial=True)
        return wds.WebLoader(data, batch_size=None, num_workers=workers)

    yield from loader([f"pipe:curl -s '{address}'" for address in signed])
    storage.copy_tree(f"{uri}/tar", cache)
    again = wds.WebDataset([str(cache / name) for name in names], resampled=True, empty_check=False)
    again = again.shuffle(500).to_tuple("png", "bin")
    again = again.map_tuple(lambda png: _decoded(png, side), lambda raw: np.frombuffer(raw, "<f4"))
    yield from wds.WebLoader(again.batched(BATCH, partial=False), batch_size=None, num_workers=workers)


def zip_dataset(uri: str, cache: Path, side: int, workers: int) -> Batches:
    """A torch Dataset over EG3D's zip, which is copied here first."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    path = cache / "dataset.zip"
    storage.copy_tree(f"{uri}/zip/dataset.zip", path)

    class Zip(Dataset):
        def __init__(self) -> None:
            with zipfile.ZipFile(path) as archive:
                self.labels = json.loads(archive.read("dataset.json"))["labels"]
            self.archive: zipfile.ZipFile | None = None

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            self.archive = self.archive or zipfile.ZipFile(path)  # Each worker opens its own.
            name, camera = self.labels[index]
            return _decoded(self.archive.read(name), side), np.array(camera, dtype=np.float32)

    shuffled = torch.Generator().manual_seed(0)
    loader = DataLoader(
        Zip(), BATCH, shuffle=True, generator=shuffled, num_workers=workers, persistent_workers=True
    )
    while True:
        yield from loader


def ray_data(uri: str, cache: Path, side: int, workers: int) -> Batches:
    """It keeps nothing locally: every epoch reads object storage."""
    import ray

    if not ray.is_initialized():
        # In a cluster of its own, of as many CPUs as the others have workers.
        os.environ.pop("RAY_ADDRESS", None)
        ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    files, path = storage.filesystem(f"{uri}/parquet")
    rows = ray.data.read_parquet(path, filesystem=files, columns=["image", "camera"], shuffle="files")

    def decode(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = np.empty((len(batch["image"]), 3, side, side), np.uint8)
        for data, out in zip(batch["image"], images, strict=True):
            decode_into(bytes(data), out)
        return {"image": images, "camera": np.stack(list(batch["camera"])).astype(np.float32)}

    decoded = rows.map_batches(decode, batch_size=BATCH)
    while True:
        for batch in decoded.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=4 * BATCH):
            yield batch["image"], batch["camera"]


def raw_decoding(uri: str, cache: Path, side: int, workers: int) -> Batches:
    """The bound: processes that decode what lies in their memory and hand nothing over.

    It yields arrays of as many rows without anything in them.
    """
    with zipfile.ZipFile(io.BytesIO(storage.read_bytes(f"{uri}/zip/dataset.zip"))) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")][: 4096 * 64 // side]
        files = [archive.read(name) for name in names]
    context = multiprocessing.get_context("fork")
    done = context.Queue(maxsize=1000)
    crew = [
        context.Process(target=_decode_for_ever, args=(files, side, done), daemon=True)
        for _ in range(workers)
    ]
    for process in crew:
        process.start()
    try:
        while True:
            yield np.empty((done.get(), 0)), None
    finally:
        for process in crew:
            process.kill()


def _decode_for_ever(files: list[bytes], side: int, done: Any) -> None:
    out = np.empty((3, side, side), np.uint8)
    while True:
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            for data in batch:
                decode_into(data, out)
            done.put(len(batch))


def _decoded(data: bytes, side: int) -> np.ndarray:
    out = np.empty((3, side, side), np.uint8)
    decode_into(data, out)
    return out


CONTESTANTS: dict[str, Callable[[str, Path, int, int], Batches]] = {
    "mimic3d": mimic3d,
    "mimic3d, decoding each time": mimic3d_decoding,
    "MosaicML Streaming": mosaicml,
    "WebDataset": webdataset,
    "torch Dataset on a zip": zip_dataset,
    "Ray Data": ray_data,
    RAW: raw_decoding,
}


def measure(
    name: str, uri: str, cache: Path, *, side: int, workers: int, count: int, seconds: float
) -> dict[str, float]:
    """One contestant: an epoch from object storage, then one from what it keeps, then `seconds` of those.

    Args:
        count: images of the set.
    Returns:
        first_batch (s), cold and warm (images a second). Building the contestant counts as cold, importing
        libraries does not. Of raw decoding only warm.
    """
    import torch

    torch.set_num_threads(1)
    for library in {
        "MosaicML Streaming": ["streaming"],
        "WebDataset": ["webdataset"],
        "Ray Data": ["ray.data"],
    }.get(name, ["mimic3d_platform.data.stream.training_stream", "boto3", "pyarrow.fs"]):
        __import__(library)
    storage.exists(f"{uri}/parquet/manifest.json")
    if name == "Ray Data":
        next(ray_data(uri, cache, side, workers))  # Its start is not what is measured.
    began = time.perf_counter()
    batches = CONTESTANTS[name](uri, cache, side, workers)
    seen = _size(next(batches))
    found = {}
    if name != RAW:
        found["first_batch"] = time.perf_counter() - began
        while seen < count:
            seen += _size(next(batches))
        found["cold"] = seen / (time.perf_counter() - began)
        while seen < 2 * count:
            seen += _size(next(batches))
    # Large images come few at a time: a second is then no measure, whole batches are.
    seen, many, began = 0, 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or many < _LEAST_BATCHES:
        seen, many = seen + _size(next(batches)), many + 1
    if hasattr(batches, "close"):
        batches.close()
    return found | {"warm": seen / passed}


def _size(batch: Any) -> int:
    return len(batch[0])
