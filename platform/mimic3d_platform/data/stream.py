"""The training stream: batches of a data set, for any rank of any world, from any image on, for ever."""

from __future__ import annotations

import queue
import threading
import time
from typing import NamedTuple

import numpy as np
import torch

from mimic3d_platform import storage
from mimic3d_platform.data.order import EpochOrder
from mimic3d_platform.data.reader import RowReader, camera_array
from mimic3d_platform.data.schema import MANIFEST, Manifest
from mimic3d_platform.errors import UserError

CACHE_BYTES = 2**30

_PREFETCH = 4


class Batch(NamedTuple):
    """A rank's part of a global batch: images (n, 3, R, R) uint8 and cameras (n, 25) float32."""

    images: torch.Tensor
    cameras: torch.Tensor


def open_dataset(uri: str) -> Manifest:
    """The manifest of the data set at `uri`.

    Raises:
        UserError: nothing is there, the set is empty or half-written, its manifest is damaged or of another
            version, or storage is out of reach.
    """
    seal = storage.join(uri, MANIFEST)
    if storage.exists(seal):
        manifest = Manifest.from_json(storage.read_bytes(seal), uri)
        if manifest.count == 0:
            raise UserError(f"the data set {uri} is empty: write it again with some images")
        return manifest
    if storage.list_files(uri, ".parquet"):
        raise UserError(
            f"the data set {uri} is half-written (no {MANIFEST}): run the command that writes it again"
        )
    if storage.exists(uri):
        raise UserError(f"{uri} is empty or no data set (no {MANIFEST}): make one with `mimic3d data render`")
    raise UserError(f"there is no data set at {uri}: check the URI, or make one with `mimic3d data render`")


def require(manifest: Manifest, *, resolution: int | None = None, where: str = "the data set") -> None:
    """Checks that a set is fit for training.

    Raises:
        UserError: it has no cameras, or its images are not of `resolution`.
    """
    if "camera" not in manifest.columns:
        raise UserError(f"{where} has no cameras, and training needs one for each image: add a camera column")
    if resolution is not None and manifest.resolution != resolution:
        raise UserError(
            f"{where} has images of {manifest.resolution}×{manifest.resolution} and the recipe wants "
            f"{resolution}×{resolution}: give a set of that resolution, or another recipe"
        )


def cameras_of(uri: str) -> torch.Tensor:
    """(n, 25) float32: the cameras of all rows, in the set's order.

    Raises:
        UserError: as `open_dataset`; or the set has no cameras.
    """
    import pyarrow.parquet as pq

    manifest = open_dataset(uri)
    require(manifest, where=uri)
    parts = []
    for shard in manifest.shards:
        place = storage.join(uri, shard.path)
        with storage.translate_errors(place, "read"):
            files, path = storage.filesystem(place)
            with files.open_input_file(path) as stream:
                parts.append(camera_array(pq.ParquetFile(stream).read(columns=["camera"])))
    return torch.from_numpy(np.concatenate(parts))


class TrainingStream:
    """An endless iterator of `Batch`es whose order is a function of (seed, epoch, index) alone.

    Global batch k holds the positions [nimg + k·B, nimg + (k+1)·B) of an endless order in which every image
    comes once an epoch; rank r takes the r-th of `world_size` equal slices. So a stream started at any `nimg`
    goes on with exactly what would have come, and the world's size changes nothing but who gets what.
    Reading, verifying and decoding go on in a thread of their own; its errors are raised by `next`.

    Attributes:
        nimg: images that all ranks have consumed, counting those before the start.
        wait_seconds: how long `next` has waited for data in all.
    """

    def __init__(
        self,
        uri: str,
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int,
        nimg: int = 0,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if global_batch < 1 or global_batch % world_size:
            raise UserError(
                f"a batch of {global_batch} cannot be split among {world_size} workers: change either"
            )
        if not 0 <= rank < world_size or nimg < 0:
            raise ValueError(f"rank {rank} of {world_size} at nimg {nimg} does not exist")
        self.manifest = open_dataset(uri)
        require(self.manifest, where=uri)
        self.nimg, self.wait_seconds = nimg, 0.0
        self._global_batch = global_batch
        self._batches: queue.Queue[Batch | BaseException] = queue.Queue(_PREFETCH)
        self._stop = threading.Event()
        share = global_batch // world_size
        # The thread holds no reference to the stream, so that a forgotten stream can end it.
        work = (
            RowReader(uri, self.manifest, cache_bytes),
            EpochOrder(self.manifest, seed),
            (nimg + rank * share, share, global_batch),
            self._batches,
            self._stop,
        )
        self._thread = threading.Thread(target=_produce, args=work, name="training stream", daemon=True)
        self._thread.start()

    def __iter__(self) -> TrainingStream:
        return self

    def __next__(self) -> Batch:
        if self._stop.is_set():
            raise StopIteration
        started = time.perf_counter()
        batch = self._batches.get()
        self.wait_seconds += time.perf_counter() - started
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        self.nimg += self._global_batch
        return batch

    def close(self) -> None:
        """Ends the thread, at the latest when a request to storage that is under way is answered.

        The stream then has no more batches.
        """
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> TrainingStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.set()


def _produce(
    reader: RowReader,
    order: EpochOrder,
    course: tuple[int, int, int],
    batches: queue.Queue[Batch | BaseException],
    stop: threading.Event,
) -> None:
    position, share, step = course
    while not stop.is_set():
        item: Batch | BaseException
        try:
            images, cameras = reader.fetch(order.rows(position, share))
            item = Batch(torch.from_numpy(images), torch.from_numpy(cameras))
        except BaseException as error:
            item = error
        while not stop.is_set():
            try:
                batches.put(item, timeout=0.2)
                break
            except queue.Full:
                continue
        if isinstance(item, BaseException):
            return
        position += step
