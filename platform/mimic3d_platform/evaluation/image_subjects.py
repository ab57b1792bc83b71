"""Images that some program has made, as subjects of an evaluation: of a data set, a folder or a zip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mimic3d import cameras as geometry
from mimic3d.evaluation.metric import Need, Views
from mimic3d.randomness import permutation
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.format.read_shards import open_shard
from mimic3d_platform.data.ingest.read_listing import FORMS, read_listing
from mimic3d_platform.data.ingest.source_files import Entry, Source, is_image, read_entries
from mimic3d_platform.data.stream.decode_images import BadImageError, decode_image
from mimic3d_platform.data.stream.row_reader import RowReader
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation.subject import IMAGES, Opened
from mimic3d_platform.storage.digests import sha256_of_json

# Objects of a data set without a box: cameras look at a box of this share of their distance.
_BOX_SHARE = 0.65
_FEWEST_VIEWS = 3


@dataclass(frozen=True)
class DatasetSubject:
    """Images of one of our data sets, in a random order.

    Attributes:
        objects: the rows of each object that has several views; empty without cameras or identities.
    """

    uri: str
    manifest: Manifest
    objects: tuple[tuple[int, ...], ...]
    seed: int
    branches: tuple[str, ...] = (IMAGES,)

    @property
    def digest(self) -> str:
        return self.manifest.fingerprint

    @property
    def resolution(self) -> int:
        return self.manifest.resolution

    @property
    def has(self) -> frozenset[Need]:
        cameras: tuple[Need, ...] = ("cameras",) if self.objects else ()
        depth: tuple[Need, ...] = ("depth",) if cameras and "depth" in self.manifest.columns else ()
        return frozenset(("images", *cameras, *depth))

    @property
    def most_images(self) -> int:
        return self.manifest.count

    @property
    def most_objects(self) -> int:
        return len(self.objects)

    def open(self, seed: int, device: torch.device) -> Opened:
        return _OpenDataset(self)


class _OpenDataset(Opened):
    branches: tuple[str, ...] = (IMAGES,)

    def __init__(self, subject: DatasetSubject) -> None:
        self._subject = subject

    def images(
        self, rows: Sequence[int], *, other_camera: bool = False, truncation: float = 1.0
    ) -> dict[str, Tensor]:
        subject = self._subject
        order = permutation(subject.seed, "images", size=subject.manifest.count)
        return {IMAGES: read_rows(subject.uri, subject.manifest, order[list(rows)])}

    def views(self, number: int, count: int) -> dict[str, Views]:
        subject = self._subject
        chosen = sorted(subject.objects[number][:count])
        shards, offsets = subject.manifest.locate(np.array(chosen))
        columns = [name for name in ("image", "camera", "depth") if name in subject.manifest.columns]
        side = subject.manifest.resolution
        files: list[bytes] = []
        labels: list[list[float]] = []
        depths: list[bytes] = []
        for shard in np.unique(shards).tolist():
            table = open_shard(subject.uri, subject.manifest.shards[shard]).read(columns=columns)
            taken = table.take(offsets[shards == shard])
            files += taken["image"].to_pylist()
            labels += taken["camera"].to_pylist()
            depths += taken["depth"].to_pylist() if "depth" in columns else []
        images = torch.stack([_pixels(file) for file in files])
        cameras = torch.tensor(labels, dtype=torch.float32)
        depth = opacity = None
        if depths:
            flat = np.stack([np.frombuffer(data, "<f4") for data in depths])
            depth = torch.from_numpy(flat.reshape(-1, 1, side, side).copy())
            opacity = depth.isfinite().float()
            depth = depth.nan_to_num(0.0, posinf=0.0)
        return {IMAGES: Views(images, cameras, _box(cameras), depth, opacity)}


@dataclass(frozen=True)
class FilesSubject:
    """Image files of a folder or a zip, in a random order.

    Attributes:
        entries: the files, in that order.
        objects: the entries' numbers and cameras of each object that has several views.
    """

    uri: str
    digest: str
    resolution: int
    entries: tuple[Entry, ...]
    objects: tuple[tuple[tuple[int, tuple[float, ...]], ...], ...]
    branches: tuple[str, ...] = (IMAGES,)

    @property
    def has(self) -> frozenset[Need]:
        cameras: tuple[Need, ...] = ("cameras",) if self.objects else ()
        return frozenset(("images", *cameras))

    @property
    def most_images(self) -> int:
        return len(self.entries)

    @property
    def most_objects(self) -> int:
        return len(self.objects)

    def open(self, seed: int, device: torch.device) -> Opened:
        return _OpenFiles(self)


class _OpenFiles(Opened):
    branches: tuple[str, ...] = (IMAGES,)

    def __init__(self, subject: FilesSubject) -> None:
        self._subject = subject

    def images(
        self, rows: Sequence[int], *, other_camera: bool = False, truncation: float = 1.0
    ) -> dict[str, Tensor]:
        return {IMAGES: torch.stack([torch.from_numpy(image) for image in self._read(rows)])}

    def views(self, number: int, count: int) -> dict[str, Views]:
        chosen = self._subject.objects[number][:count]
        pixels = np.stack(self._read([row for row, _ in chosen]))
        cameras = torch.tensor([camera for _, camera in chosen], dtype=torch.float32)
        images = torch.from_numpy(pixels).float() / 127.5 - 1
        return {IMAGES: Views(images, cameras, _box(cameras))}

    def _read(self, rows: Sequence[int]) -> list[np.ndarray]:
        subject = self._subject
        entries = [subject.entries[row] for row in rows]
        contents = read_entries(subject.uri, entries)
        return [
            _square(data, subject.resolution, f"{entry.name} of {subject.uri}")
            for entry, data in zip(entries, contents, strict=True)
        ]


def read_rows(uri: str, manifest: Manifest, rows: np.ndarray) -> Tensor:
    """(n, 3, R, R) uint8: images of a data set."""
    reader = RowReader(uri, manifest)
    try:
        return torch.from_numpy(reader.read(rows)[0])
    finally:
        reader.close()


def objects_of_dataset(uri: str, manifest: Manifest, seed: int) -> tuple[tuple[int, ...], ...]:
    """The rows of each object with several views, objects and views in random order."""
    if not {"camera", "identity"} <= set(manifest.columns):
        return ()
    names: list[str] = []
    for shard in manifest.shards:
        names += open_shard(uri, shard).read(columns=["identity"])["identity"].to_pylist()
    rows: dict[str, list[int]] = {}
    for row in permutation(seed, "views", size=len(names)).tolist():
        rows.setdefault(names[row], []).append(row)
    return tuple(tuple(each) for each in rows.values() if len(each) >= _FEWEST_VIEWS)


def files_subject(uri: str, seed: int) -> FilesSubject:
    source = Source(uri)
    names = sorted(name for name in source.entries if is_image(name))
    if not names:
        raise UserError(f"{uri} holds no image: give a folder or a zip of PNG, JPEG or WebP files")
    order = [names[index] for index in permutation(seed, "images", size=len(names))]
    entries = tuple(source.entries[name] for name in order)
    first = _decoded(source.read(order[0]), f"{order[0]} of {uri}")
    side = first.shape[0]
    _square(source.read(order[0]), side, f"{order[0]} of {uri}")
    objects = _objects_of_files(source, order)
    files = sorted([entry.name, entry.size, entry.check] for entry in entries)
    # Views are measured again after the list of cameras was corrected.
    views = sorted([entries[row].name, *camera] for each in objects for row, camera in each)
    return FilesSubject(uri, sha256_of_json([files, views]), side, entries, objects)


def _objects_of_files(
    source: Source, order: Sequence[str]
) -> tuple[tuple[tuple[int, tuple[float, ...]], ...], ...]:
    """By object, the numbers and cameras of its views; empty where the source has no list of cameras."""
    listings = {name for form in FORMS.values() for name in form.listings}
    if not any(place == name or place.endswith(f"/{name}") for place in source.entries for name in listings):
        return ()
    listing = read_listing(source, by_folder=True, partial=True)
    views = zip(listing.entries, listing.identities, listing.labels.tolist(), strict=True)
    cameras = {entry: (identity, tuple(label)) for entry, identity, label in views}
    objects: dict[str, list[tuple[int, tuple[float, ...]]]] = {}
    for number, name in enumerate(order):
        if name in cameras:
            identity, camera = cameras[name]
            objects.setdefault(identity, []).append((number, camera))
    return tuple(tuple(views) for views in objects.values() if len(views) >= _FEWEST_VIEWS)


def _box(cameras: Tensor) -> float:
    """The side of the box that cameras (V, 25) see, where none is given: a share of their distance."""
    pose = geometry.split_label(cameras)[0]
    return float(pose[:, :3, 3].norm(dim=1).mean()) * _BOX_SHARE


def _pixels(data: bytes) -> Tensor:
    """(3, R, R) in [-1, 1] of an image file."""
    return torch.from_numpy(decode_image(data).transpose(2, 0, 1).copy()).float() / 127.5 - 1


def _decoded(data: bytes, where: str) -> np.ndarray:
    try:
        return decode_image(data)
    except BadImageError as error:
        raise UserError(f"{where} {error}: remove or replace it") from error


def _square(data: bytes, side: int, where: str) -> np.ndarray:
    """(3, side, side) uint8 of an image file."""
    pixels = _decoded(data, where)
    if pixels.shape[:2] != (side, side):
        height, width = pixels.shape[:2]
        raise UserError(
            f"{where} is {width}×{height}, others are {side}×{side}: give square images of one size"
        )
    return pixels.transpose(2, 0, 1).copy()
