"""What `mimic3d evaluate` judges: a generator, or images that some program has made.

Both give the same things: images by number, and the views of an object by its number.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import Config, config_from_yaml
from mimic3d.evaluation.consistency import depth_view, rotated
from mimic3d.evaluation.generated import generated_images
from mimic3d.evaluation.metric import Need, Views
from mimic3d.export.mesh import extract_mesh
from mimic3d.networks.generator import Generator
from mimic3d.networks.precision import allow_tf32
from mimic3d.randomness import counter_generator
from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset import open_dataset, read_cameras
from mimic3d_platform.data.format.manifest_file import find_manifest
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation.image_subjects import DatasetSubject, files_subject, objects_of_dataset
from mimic3d_platform.evaluation.subject import Opened, Subject
from mimic3d_platform.models import checkpoints, model_uris, registry

# The views of an object: yaw of at most this many radians to either side, as in GRAM-HD and Mimic3D.
YAW = 0.4
GENERATED_AT_ONCE = 16
# Samples of the density along each side of the box.
SURFACE_RESOLUTION = 64


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
        seen: tuple[Need, ...] = ("images", "two cameras", "truncation", "cameras", "orbit", "depth")
        return frozenset((*seen, "density", *both))

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

    def images(
        self, rows: Sequence[int], *, other_camera: bool = False, truncation: float = 1.0
    ) -> dict[str, Tensor]:
        parts = list(
            generated_images(
                self._generator,
                self._cameras,
                rows,
                seed=self._seed,
                batch=GENERATED_AT_ONCE,
                other_camera=other_camera,
                truncation=truncation,
            )
        )
        return {branch: torch.cat([part[branch] for part in parts]) for branch in self.branches}

    def surface(self, number: int, branch: str) -> tuple[np.ndarray, np.ndarray]:
        w, _ = self._object(number)
        mesh = extract_mesh(self._generator, w, branch=branch, resolution=SURFACE_RESOLUTION)
        return np.asarray(mesh.vertices), np.asarray(mesh.faces)

    @torch.no_grad()
    def _object(self, number: int) -> tuple[Tensor, Tensor]:
        """The latent (1, num_ws, w_dim) of object `number`, and the camera (1, 25) that conditions it."""
        source = counter_generator(self._seed, "views", number)
        device = next(self._generator.parameters()).device
        z = torch.randn(1, self._generator.config.z_dim, generator=source).to(device)
        camera = self._cameras[torch.randint(len(self._cameras), (1,), generator=source)].to(device)
        return self._generator.mapping(z, camera), camera

    @torch.no_grad()
    def views(self, number: int, count: int) -> dict[str, Views]:
        G = self._generator
        w, camera = self._object(number)
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
        return DatasetSubject(uri, manifest, objects_of_dataset(uri, manifest, seed), seed), data_uri
    return files_subject(uri, seed), data_uri


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
        config = config_from_yaml((folder / CONFIG).read_text(encoding="utf-8"), f"{uri}/{CONFIG}")
        try:
            branches = load_generator(folder)[0].branches
        except ValueError as error:
            raise UserError(str(error).replace(str(folder), uri)) from error
    data_uri = data_uri or config.data.uri
    if not data_uri:
        raise UserError(f"the config of {uri} names no data set: give --data s3://…")
    cameras = read_cameras(data_uri)
    return GeneratorSubject(uri, pinned, digest, config, branches, cameras), data_uri
