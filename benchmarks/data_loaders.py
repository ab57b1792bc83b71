"""The data loaders that `make bench-data` compares. Each yields decoded batches endlessly.

A loader is a function of a `Source` and the number of worker processes that decode. All loaders shuffle, use
the same decoder, and yield batches of 32: images (n, 3, R, R) uint8 and cameras (n, 25) float32.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import torch_loaders
from mimic3d_platform import storage
from mimic3d_platform.data.stream.decode_images import decode_into

BATCH = 32
RAW_DECODING = "raw decoding"

# Arrays or tensors, by the loader's own choice.
Batches = Iterator[Any]


@dataclass(frozen=True)
class Source:
    """The place that a loader reads from.

    Attributes:
        uri: the folder in object storage that holds the images in every format (`data_sets.write_formats`).
        cache: a local folder, empty at first.
        side: R, pixels.
    """

    uri: str
    cache: Path
    side: int


def mimic3d(source: Source, workers: int, cache_bytes: int = 16 * 2**30) -> Batches:
    """This project's training stream."""
    from mimic3d_platform.data.stream.training_stream import TrainingStream

    os.environ["MIMIC3D_CACHE"] = str(source.cache)
    yield from TrainingStream(
        f"{source.uri}/parquet", global_batch=BATCH, seed=0, cache_bytes=cache_bytes, loaders=workers
    )


def mimic3d_decoding(source: Source, workers: int) -> Batches:
    """The training stream with a data set whose decoded images do not fit in the cache."""
    from mimic3d_platform.data.format.dataset import open_dataset
    from mimic3d_platform.data.stream.cache_files import RowFile

    stored = sum(RowFile.most_bytes(shard) for shard in open_dataset(f"{source.uri}/parquet").shards)
    return mimic3d(source, workers, cache_bytes=stored)


def torch_loader(variant: str) -> Callable[[Source, int], Batches]:
    """The training stream with a torch DataLoader in place of its loader processes."""

    def batches(source: Source, workers: int) -> Batches:
        os.environ["MIMIC3D_CACHE"] = str(source.cache)
        return torch_loaders.VARIANTS[variant](f"{source.uri}/parquet", BATCH, workers)

    return batches


def mosaicml(source: Source, workers: int) -> Batches:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]

    clean_stale_shared_memory()  # Otherwise this measurement would use that of the one before.

    class Decoded(StreamingDataset):
        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            row = super().__getitem__(index)
            return _decoded(row["image"], source.side), row["camera"]

    data = Decoded(remote=f"{source.uri}/mds", local=str(source.cache), shuffle=True, batch_size=BATCH)
    loader: DataLoader[Any] = DataLoader(data, BATCH, num_workers=workers, persistent_workers=True)
    while True:
        yield from loader


def webdataset(source: Source, workers: int) -> Batches:
    """The first epoch over signed URLs, as from any store; then from local files, as its cache keeps them."""
    import webdataset as wds

    client = storage.s3_client()
    bucket, folder = storage.split_s3(f"{source.uri}/tar")
    names = [place.rsplit("/", 1)[-1] for place in storage.list_files(f"{source.uri}/tar")]
    signed = [
        client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": f"{folder}/{name}"})
        for name in names
    ]

    def decoded(data: Any) -> Any:
        data = data.shuffle(500).to_tuple("png", "bin")
        return data.map_tuple(lambda png: _decoded(png, source.side), lambda raw: np.frombuffer(raw, "<f4"))

    places = [f"pipe:curl -s '{url}'" for url in signed]
    first = wds.WebDataset(places, shardshuffle=len(places), nodesplitter=None, empty_check=False)
    first = decoded(first).batched(BATCH, partial=True)
    yield from wds.WebLoader(first, batch_size=None, num_workers=workers)
    storage.copy_tree(f"{source.uri}/tar", source.cache)
    local = wds.WebDataset([str(source.cache / name) for name in names], resampled=True, empty_check=False)
    local = decoded(local).batched(BATCH, partial=False)
    yield from wds.WebLoader(local, batch_size=None, num_workers=workers)


def zip_dataset(source: Source, workers: int) -> Batches:
    """A torch Dataset over EG3D's zip, which is copied to local disk first."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    path = source.cache / "dataset.zip"
    storage.copy_tree(f"{source.uri}/zip/dataset.zip", path)

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
            return _decoded(self.archive.read(name), source.side), np.array(camera, dtype=np.float32)

    generator = torch.Generator().manual_seed(0)
    loader: DataLoader[tuple[np.ndarray, np.ndarray]] = DataLoader(
        Zip(), BATCH, shuffle=True, generator=generator, num_workers=workers, persistent_workers=True
    )
    while True:
        yield from loader


def ray_data(source: Source, workers: int) -> Batches:
    """Ray Data keeps nothing locally: every epoch reads object storage."""
    import ray

    if not ray.is_initialized():
        # A cluster of its own, with as many CPUs as the other loaders have workers.
        os.environ.pop("RAY_ADDRESS", None)
        ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    files, path = storage.arrow_filesystem(f"{source.uri}/parquet")
    rows = ray.data.read_parquet(path, filesystem=files, columns=["image", "camera"], shuffle="files")
    side = source.side

    def decode(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = np.empty((len(batch["image"]), 3, side, side), np.uint8)
        for data, out in zip(batch["image"], images, strict=True):
            decode_into(bytes(data), out)
        return {"image": images, "camera": np.stack(list(batch["camera"])).astype(np.float32)}

    decoded = rows.map_batches(decode, batch_size=BATCH)
    while True:
        for batch in decoded.iter_batches(batch_size=BATCH, local_shuffle_buffer_size=4 * BATCH):
            yield batch["image"], batch["camera"]


def raw_decoding(source: Source, workers: int) -> Batches:
    """The bound: processes that decode images from their own memory and hand nothing over.

    It yields empty arrays of as many rows as were decoded.
    """
    with zipfile.ZipFile(io.BytesIO(storage.read_bytes(f"{source.uri}/zip/dataset.zip"))) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        files = [archive.read(name) for name in names[: 4096 * 64 // source.side]]
    context = multiprocessing.get_context("fork")
    done: Queue[int] = context.Queue(maxsize=1000)
    processes = [
        context.Process(target=_decode_endlessly, args=(files, source.side, done), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        while True:
            yield np.empty((done.get(), 0)), None
    finally:
        for process in processes:
            process.kill()


def _decode_endlessly(files: list[bytes], side: int, done: Queue[int]) -> None:
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


@dataclass(frozen=True)
class Loader:
    """A data loader of the comparison.

    Attributes:
        format: of its data set, as `data_sets.write_formats` names it.
        modules: to be imported before its time is taken.
    """

    batches: Callable[[Source, int], Batches]
    format: str = "parquet"
    modules: tuple[str, ...] = ("mimic3d_platform.data.stream.training_stream", "boto3", "pyarrow.fs")


LOADERS = {
    "mimic3d": Loader(mimic3d),
    "mimic3d, decoding each time": Loader(mimic3d_decoding),
    "MosaicML Streaming": Loader(mosaicml, "mds", ("streaming",)),
    "WebDataset": Loader(webdataset, "tar", ("webdataset",)),
    "torch Dataset on a zip": Loader(zip_dataset, "zip"),
    "Ray Data": Loader(ray_data, modules=("ray.data",)),
    RAW_DECODING: Loader(raw_decoding, "zip"),
}

# Measured only where they are named by --only: why the stream has loader processes of its own.
EXPERIMENTS = {
    f"torch DataLoader, {variant}": Loader(torch_loader(variant)) for variant in torch_loaders.VARIANTS
}
