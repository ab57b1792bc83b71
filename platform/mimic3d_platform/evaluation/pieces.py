"""The pieces that an evaluation is divided into: each a Ray task, whose result is a file in storage.

The division depends on the numbers of images and objects alone, and a file's name on all that its content
depends on: results do not depend on the number of workers, an evaluation that was stopped resumes with the
pieces that are missing, and pieces of real images are shared by all evaluations against a data set.
"""

from __future__ import annotations

import functools
import math
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mimic3d.evaluation import registry
from mimic3d.evaluation.shapes import compare_with_nearest, surface_points
from mimic3d.export.marching_cubes import NoSurfaceError
from mimic3d.features.extractor import FeatureExtractor
from mimic3d.features.registry import load_extractor
from mimic3d.losses.perceptual import PerceptualDistance
from mimic3d_platform import storage
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.evaluation.face_model import load_face_model
from mimic3d_platform.evaluation.image_subjects import read_rows
from mimic3d_platform.evaluation.known_shapes import KnownShapes
from mimic3d_platform.evaluation.measured import PartCost
from mimic3d_platform.evaluation.subject import Subject
from mimic3d_platform.storage.digests import sha256_of_file, sha256_of_json

FOLDER = "evaluations"
REALS, GENERATED, OTHER_CAMERA, VIEWS = "reals", "generated", "other camera", "views"
SHAPES = "shapes"
# Images of a piece; a generator takes longer for one than a data set.
_ROWS = {REALS: 512, VIEWS: 1, SHAPES: 1}
_GENERATED_ROWS = 64
# Images of each truncation, at most: precision and recall need no more to show a trend.
TRUNCATED_IMAGES = 1024
_READ_AT_ONCE = 64
# To be raised when a metric or the views of an object change, so that older pieces are not reused.
VERSION = 4
# In the file of a piece: its seconds, and the megabytes of its worker.
_COST = "cost"


@dataclass(frozen=True)
class Plan:
    """All that the pieces of an evaluation depend on.

    Attributes:
        data_uri, data: the data set of real images.
        network: the feature network, as `mimic3d weights` names it.
        network_sha256: of its converted weights.
        perceptual: the network of the perceptual distance, as `mimic3d weights` names it.
        images: of the subject.
        objects: whose views are compared.
        views: of each object.
        view_metrics: the kinds of the metrics of views.
        known_shapes: with which generated surfaces are compared.
        faces: whether metrics of faces are measured.
        truncations: below 1, with which images are generated for the curve of fidelity over truncation.
        cache_uri: the folder below which the pieces are stored.
        gpu: whether tasks use a GPU.
    """

    subject: Subject
    data_uri: str
    data: Manifest
    network: str
    network_sha256: str
    perceptual: str
    images: int
    objects: int
    views: int
    view_metrics: tuple[str, ...]
    seed: int
    cache_uri: str
    gpu: bool = False
    truncations: tuple[float, ...] = ()
    known_shapes: KnownShapes | None = None
    faces: bool = False

    @property
    def truncated_images(self) -> int:
        """The images of each truncation."""
        return min(self.images, TRUNCATED_IMAGES)

    def pieces(self) -> list[Piece]:
        """All pieces, those of real images first."""
        counts = {REALS: self.data.count, GENERATED: self.images}
        if "two cameras" in self.subject.has:
            counts[OTHER_CAMERA] = self.images
        if self.view_metrics:
            counts[VIEWS] = self.objects
        if self.known_shapes is not None:
            counts[SHAPES] = self.objects
        counts |= {truncated(truncation): self.truncated_images for truncation in self.truncations}
        sizes = {what: _ROWS.get(what, _GENERATED_ROWS) for what in counts}
        return [
            Piece(what, range(start, min(start + sizes[what], count)))
            for what, count in counts.items()
            for start in range(0, count, sizes[what])
        ]

    def uri_of(self, piece: Piece) -> str:
        """The file of a piece."""
        inputs: list[object] = [VERSION, piece.what, piece.rows.start, piece.rows.stop]
        if piece.what == REALS:
            inputs += [self.data.fingerprint, self.network_sha256]
        else:
            inputs += [self.subject.digest, self.seed, self.data.fingerprint]
            if piece.what == VIEWS:
                inputs += [self.views, *self.view_metrics]
            elif piece.what == SHAPES and self.known_shapes is not None:
                inputs.append(self.known_shapes.digest)
            else:
                inputs.append(self.network_sha256)
        return storage.join(self.cache_uri, FOLDER, f"{sha256_of_json(inputs)[:32]}.safetensors")


def truncated(truncation: float) -> str:
    """The kind (`Piece.what`) of the pieces of a truncation."""
    return f"truncated {truncation:g}"


@dataclass(frozen=True)
class Piece:
    """Consecutive images of one kind, or objects.

    Attributes:
        what: `REALS`, `GENERATED`, `OTHER_CAMERA`, `VIEWS`, `SHAPES` or that of a truncation.
    """

    what: str
    rows: range


def measure_piece(index: int, plan: Plan) -> PartCost:
    """Measures piece `index` of a plan and stores it, unless it is stored; returns what it took then.

    Raises:
        UserError: an image cannot be read or is of another size, or storage cannot be reached.
    """
    from safetensors.torch import save

    piece = plan.pieces()[index]
    uri = plan.uri_of(piece)
    cost = _stored_cost(uri)
    if cost is None:
        began = time.perf_counter()
        device = torch.device("cuda" if plan.gpu and torch.cuda.is_available() else "cpu")
        measure = {VIEWS: _view_parts, SHAPES: _shape_parts}.get(piece.what, _features)
        measured = measure(plan, piece, device)
        cost = torch.tensor([time.perf_counter() - began, _peak_megabytes()], dtype=torch.float64)
        storage.write_bytes(uri, save(measured | {_COST: cost}))
    return PartCost(piece.what, len(piece.rows), *cost.tolist())


def _stored_cost(uri: str) -> Tensor | None:
    """What a piece took, if it is stored; None also for a file that is damaged and must be made again."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not storage.exists(uri):
        return None
    try:
        return load(storage.read_bytes(uri))[_COST]
    except (SafetensorError, KeyError):
        return None


def stored(plan: Plan, what: str, branch: str) -> Iterator[Tensor]:
    """The stored tensors of a branch, piece by piece: (n, D) features, or (1, K) sums of `VIEWS`."""
    from safetensors.torch import load

    for piece in plan.pieces():
        if piece.what == what:
            tensors = load(storage.read_bytes(plan.uri_of(piece)))
            if branch in tensors:
                yield tensors[branch]


def sum_costs(costs: Iterable[PartCost]) -> list[PartCost]:
    """The time and memory of each part of an evaluation, from those of its pieces."""
    found: dict[str, PartCost] = {}
    for cost in costs:
        before = found.get(cost.part, PartCost(cost.part, 0, 0.0, 0.0))
        found[cost.part] = PartCost(
            cost.part,
            before.count + cost.count,
            before.seconds + cost.seconds,
            max(before.megabytes, cost.megabytes),
        )
    return list(found.values())


def branch_key(kind: str, branch: str) -> str:
    """The name of a metric's sums in the file of an object."""
    return f"{kind}/{branch}"


def _features(plan: Plan, piece: Piece, device: torch.device) -> dict[str, Tensor]:
    """By branch, (n, D) float32 features of a piece's images."""
    extractor = _extractor(plan.network, plan.network_sha256, device)
    if piece.what == REALS:
        parts = np.array_split(np.array(piece.rows), math.ceil(len(piece.rows) / _READ_AT_ONCE))
        features = [extractor(read_rows(plan.data_uri, plan.data, rows).to(device)) for rows in parts]
        return {REALS: torch.cat(features).cpu()}
    opened = plan.subject.open(plan.seed, device)
    truncation = next((each for each in plan.truncations if truncated(each) == piece.what), 1.0)
    images = opened.images(piece.rows, other_camera=piece.what == OTHER_CAMERA, truncation=truncation)
    return {branch: _checked(extractor(pixels.to(device)).cpu(), plan) for branch, pixels in images.items()}


def _view_parts(plan: Plan, piece: Piece, device: torch.device) -> dict[str, Tensor]:
    """By metric and branch, (1, K) float64 sums over the views of the piece's object."""
    opened = plan.subject.open(plan.seed, device)
    metrics = [metric for metric in registry.VIEWS if metric.kind in plan.view_metrics]
    compares = any(metric.network for metric in metrics)
    perceptual = _perceptual(plan.perceptual) if compares else None
    face_model = load_face_model() if plan.faces else None
    found = {}
    for branch, seen in opened.views(piece.rows.start, plan.views).items():
        views = replace(seen, perceptual=perceptual, face_model=face_model)
        for metric in metrics:
            if metric.can_measure(views):
                sums = torch.tensor([metric.part(views)], dtype=torch.float64)
                found[branch_key(metric.kind, branch)] = sums
    return found


def _shape_parts(plan: Plan, piece: Piece, device: torch.device) -> dict[str, Tensor]:
    """By branch, (1, 3) float64 of `shapes.compare_with_nearest`; NaN of an object without a surface."""
    assert plan.known_shapes is not None
    opened = plan.subject.open(plan.seed, device)
    found = {}
    for branch in opened.branches:
        try:
            points = surface_points(*opened.surface(piece.rows.start, branch))
            compared = compare_with_nearest(points, plan.known_shapes.points)
        except NoSurfaceError:
            compared = (math.nan, math.nan, -1)
        found[branch] = torch.tensor([compared], dtype=torch.float64)
    return found


def _peak_megabytes() -> float:
    """The most memory that this process has held; Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _checked(features: Tensor, plan: Plan) -> Tensor:
    if not features.isfinite().all():
        raise UserError(f"features of {plan.subject.uri} are not finite: its images or weights are damaged")
    return features


@functools.lru_cache(maxsize=1)
def _extractor(network: str, digest: str, device: torch.device) -> FeatureExtractor:
    """The feature extractor, loaded once in a worker process.

    Raises:
        UserError: this worker's feature weights are not those of the process that planned the evaluation.
    """
    path = feature_weights.resolve(network)
    if sha256_of_file(path) != digest:
        raise UserError(f"a worker has other weights of {network}: stage them with `mimic3d weights --stage`")
    return load_extractor(path, network).to(device)


@functools.lru_cache(maxsize=1)
def _perceptual(network: str) -> PerceptualDistance:
    """The perceptual distance on the CPU, where views are, loaded once in a worker process."""
    return PerceptualDistance.from_file(feature_weights.resolve(network), network)


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """All rows of some pieces."""
    return torch.cat(list(parts)) if parts else torch.empty(0, 0)
