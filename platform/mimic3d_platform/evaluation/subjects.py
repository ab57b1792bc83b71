"""What `mimic3d evaluate` judges: a generator, or images that some program has made.

Both give the same things: images by number, and the views of an object by its number.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mimic3d import cameras as geometry
from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import Config, config_from_yaml
from mimic3d.evaluation.consistency import depth_view, rotated
from mimic3d.evaluation.generated import generated_images
from mimic3d.evaluation.metric import Need, Views
from mimic3d.networks.generator import Generator
from mimic3d.networks.precision import allow_tf32
from mimic3d.randomness import counter_generator, permutation
from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset import open_dataset, read_cameras
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.format.manifest_file import find_manifest
from mimic3d_platform.data.format.read_shards import open_shard
from mimic3d_platform.data.ingest.read_listing import FORMS, read_listing
from mimic3d_platform.data.ingest.source_files import Entry, Source, is_image, read_entries
from mimic3d_platform.data.stream.decode_images import BadImageError, decode_image
from mimic3d_platform.data.stream.row_reader import RowReader
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import checkpoints, model_uris, registry
from mimic3d_platform.storage.digests import sha256_of_json

# The views of an object: yaw of at most this many radians to either side, as in GRAM-HD and Mimic3D.
YAW = 0.4
# The branch of images that no generator of ours made.
IMAGES = "images"
GENERATED_AT_ONCE = 16
# Objects of a data set without a box: cameras look at a box of this share of their distance.
_BOX_SHARE = 0.65
_FEWEST_VIEWS = 3


class Opened(Protocol):
    """A subject that a worker has opened."""

    branches: tuple[str, ...]

    def images(self, rows: Sequence[int], *, other_camera: bool) -> dict[str, Tensor]:
        """By branch, (n, 3, R, R) uint8: the images of these numbers."""

    def views(self, number: int, count: int) -> dict[str, Views]:
        """By branch, at most `count` views of object `number`."""


class Subject(Protocol):
    """A subject as it travels to workers.

    Attributes:
        uri: as the user gave it.
        digest: SHA-256 of what it consists of.
        resolution: of its images.
        branches: of its images; `images` for those that no generator made.
        has: what metrics can ask of it.
        most_images, most_objects: how many there are; None for a generator, which makes as many as asked.
    """

    uri: str
    digest: str
    resolution: int
    branches: tuple[str, ...]
    has: frozenset[Need]
    most_images: int | None
    most_objects: int | None

    def open(self, seed: int, device: torch.device) -> Opened:
        """Loads it into this process."""


@dataclass(frozen=True)
class GeneratorSubject:
    """A generator, which renders cameras of a data set.

    Attributes:
        pinned: the URI that workers fetch: of a registered model, its version.
        cameras: (n, 25) labels of the data set.
        config: the generator's own.
    """

    uri: str
    pinned: str
    digest: str
    config: Config
    branches: tuple[str, ...]
    cameras: np.ndarray
    most_images: None = None
    most_objects: None = None

    @property
    def resolution(self) -> int:
        return self.config.model.image_resolution

    @property
    def has(self) -> frozenset[Need]:
        both: tuple[Need, ...] = ("both branches",) if len(self.branches) == 2 else ()
        return frozenset(("images", "two cameras", "cameras", "orbit", "depth", *both))

    def open(self, seed: int, device: torch.device) -> Opened:
        allow_tf32(self.config.model.allow_tf32)
        generator = _generator(self.pinned, self.digest, device)
        return _OpenGenerator(generator, torch.from_numpy(self.cameras), self.config, seed)


@functools.lru_cache(maxsize=2)
def _generator(uri: str, digest: str, device: torch.device) -> Generator:
    """The generator at `uri`, loaded once in a worker process."""
    from mimic3d.checkpoints.generator_folder import load_generator

    with tempfile.TemporaryDirectory(prefix="mimic3d-evaluate-") as folder:
        fetched = model_uris.fetch(uri, Path(folder), digest)
        return load_generator(model_uris.generator_folder(fetched))[0].to(device)


class _OpenGenerator:
    def __init__(self, generator: Generator, cameras: Tensor, config: Config, seed: int) -> None:
        self.branches = generator.branches
        self._generator, self._cameras, self._config, self._seed = generator, cameras, config, seed

    def images(self, rows: Sequence[int], *, other_camera: bool) -> dict[str, Tensor]:
        parts = list(
            generated_images(
                self._generator,
                self._cameras,
                rows,
                seed=self._seed,
                batch=GENERATED_AT_ONCE,
                other_camera=other_camera,
            )
        )
        return {branch: torch.cat([part[branch] for part in parts]) for branch in self.branches}

    @torch.no_grad()
    def views(self, number: int, count: int) -> dict[str, Views]:
        G, source = self._generator, counter_generator(self._seed, "views", number)
        device = next(G.parameters()).device
        z = torch.randn(1, G.config.z_dim, generator=source).to(device)
        camera = self._cameras[torch.randint(len(self._cameras), (1,), generator=source)].to(device)
        w = G.mapping(z, camera)
        pivot = torch.tensor(self._config.camera.pivot)
        yaws = torch.linspace(-YAW, YAW, count).tolist()
        path = torch.cat([rotated(camera, yaw, pivot) for yaw in yaws])
        found: dict[str, Views] = {}
        for branch in self.branches:
            rendered = [depth_view(G, w, one, branch) for one in path.split(1)]
            images, depth, opacity = (
                torch.cat([getattr(view, part) for view in rendered]).cpu()
                for part in ("image", "depth", "opacity")
            )
            imitated = found["2d"].images if branch == "3d" and "2d" in found else None
            box = self._config.rendering.box_warp
            found[branch] = Views(images, path.cpu(), box, depth, opacity, True, imitated)
        return found


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


class _OpenDataset:
    branches = (IMAGES,)

    def __init__(self, subject: DatasetSubject) -> None:
        self._subject = subject

    def images(self, rows: Sequence[int], *, other_camera: bool) -> dict[str, Tensor]:
        subject = self._subject
        order = permutation(subject.seed, "images", size=subject.manifest.count)
        return {IMAGES: read_rows(subject.uri, subject.manifest, order[list(rows)])}

    def views(self, number: int, count: int) -> dict[str, Views]:
        subject = self._subject
        chosen = sorted(subject.objects[number][:count])
        starts = np.concatenate([[0], np.cumsum([shard.rows for shard in subject.manifest.shards])])
        columns = [name for name in ("image", "camera", "depth") if name in subject.manifest.columns]
        side = subject.manifest.resolution
        records: list[dict[str, bytes | list[float]]] = []
        for shard in sorted({int(np.searchsorted(starts, row, side="right")) - 1 for row in chosen}):
            table = open_shard(subject.uri, subject.manifest.shards[shard]).read(columns=columns)
            local = [row - int(starts[shard]) for row in chosen if starts[shard] <= row < starts[shard + 1]]
            records += table.take(local).to_pylist()
        images = torch.stack([_pixels(record["image"]) for record in records])
        cameras = torch.tensor([record["camera"] for record in records], dtype=torch.float32)
        depth = opacity = None
        if "depth" in columns:
            flat = np.stack([np.frombuffer(record["depth"], "<f4") for record in records])
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


class _OpenFiles:
    branches = (IMAGES,)

    def __init__(self, subject: FilesSubject) -> None:
        self._subject = subject

    def images(self, rows: Sequence[int], *, other_camera: bool) -> dict[str, Tensor]:
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


def open_subject(uri: str, data_uri: str | None, seed: int) -> tuple[Subject, str]:
    """Finds out what `uri` names, and the data set that it is compared with.

    Args:
        uri: a generator (`models:/…`, `builtin:NAME`, a folder, a checkpoint, a run's folder) or images (a
            data set, a folder or a zip).
        data_uri: of the real images; that of the generator's training when None.
        seed: of the order in which images are taken.
    Returns:
        The subject, and the data set's URI.
    Raises:
        UserError: nothing is there, images without a data set to compare with, or images that are not all of
            one size.
    """
    uri = storage.absolute(uri)
    data_uri = storage.absolute(data_uri) if data_uri else None
    generator = _generator_uri(uri)
    if generator is not None:
        return _generator_subject(uri, generator, data_uri)
    if data_uri is None:
        raise UserError(f"{uri} holds images: name the data set of real images with --data s3://…")
    if find_manifest(uri) is not None:
        manifest = open_dataset(uri)
        return DatasetSubject(uri, manifest, _objects_of_dataset(uri, manifest, seed), seed), data_uri
    return _files_subject(uri, seed), data_uri


def read_rows(uri: str, manifest: Manifest, rows: np.ndarray) -> Tensor:
    """(n, 3, R, R) uint8: images of a data set."""
    reader = RowReader(uri, manifest)
    try:
        return torch.from_numpy(reader.read(rows)[0])
    finally:
        reader.close()


def _generator_uri(uri: str) -> str | None:
    """The URI that a generator is fetched from; None where there is none at `uri`."""
    if registry.is_registered(uri) or uri.startswith(model_uris.BUILTIN):
        return uri
    if uri.endswith(".zip"):
        return None
    for file in (CONFIG, f"generator/{CONFIG}"):
        if storage.exists(storage.join(uri, file)) and not storage.exists(
            storage.join(uri, checkpoints.FOLDER)
        ):
            return uri
    folder, _, run = uri.rstrip("/").rpartition("/")
    if storage.list_files(storage.join(uri, checkpoints.FOLDER), checkpoints.MANIFEST):
        stored = checkpoints.CheckpointStore(folder, run).all()
        if stored:
            return max(stored, key=lambda checkpoint: checkpoint.nimg).uri
    return None


def _generator_subject(uri: str, generator: str, data_uri: str | None) -> tuple[Subject, str]:
    from mimic3d.checkpoints.generator_folder import load_generator

    version = registry.version_of(generator) if registry.is_registered(generator) else None
    # An alias may move while workers start: all of them fetch the version that it names now.
    pinned = f"models:/{version.name}/{version.version}" if version else generator
    with tempfile.TemporaryDirectory(prefix="mimic3d-evaluate-") as name:
        fetched = model_uris.fetch(pinned, Path(name))
        digest = model_uris.folder_digest(fetched)
        folder = model_uris.generator_folder(fetched)
        if not (folder / CONFIG).is_file():
            raise UserError(f"{uri} is no generator (it has no {CONFIG}): name a generator's folder or model")
        config = config_from_yaml((folder / CONFIG).read_text(), f"{uri}/{CONFIG}")
        try:
            branches = load_generator(folder)[0].branches
        except ValueError as error:
            raise UserError(str(error).replace(str(folder), uri)) from error
    data_uri = data_uri or config.data.uri
    if not data_uri:
        raise UserError(f"the config of {uri} names no data set: give --data s3://…")
    cameras = read_cameras(data_uri)
    return GeneratorSubject(uri, pinned, digest, config, branches, cameras), data_uri


def _objects_of_dataset(uri: str, manifest: Manifest, seed: int) -> tuple[tuple[int, ...], ...]:
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


def _files_subject(uri: str, seed: int) -> FilesSubject:
    source = Source(uri)
    names = sorted(name for name in source.entries if is_image(name))
    if not names:
        raise UserError(f"{uri} holds no image: give a folder or a zip of PNG, JPEG or WebP files")
    order = [names[index] for index in permutation(seed, "images", size=len(names))]
    entries = tuple(source.entries[name] for name in order)
    first = _decoded(source.read(order[0]), f"{order[0]} of {uri}")
    side = first.shape[0]
    _square(source.read(order[0]), side, f"{order[0]} of {uri}")
    digest = sha256_of_json([[e.name, e.size, e.check] for e in sorted(entries, key=lambda e: e.name)])
    return FilesSubject(uri, digest, side, entries, _objects_of_files(source, order))


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


def angle_between(a: Tensor, b: Tensor) -> float:
    """The angle, radians, between the directions from the origin to two cameras (25,)."""
    first, second = (geometry.split_label(camera)[0][:3, 3] for camera in (a, b))
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=0).clamp(-1, 1)
    return math.acos(float(cosine))
