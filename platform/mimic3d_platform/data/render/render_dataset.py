"""Renders a data set from meshes: every (model, colouring) is an identity with its own cameras.

Models keep their own colours, as one identity each, unless colourings are asked for.

A row is a function of (seed, model, colouring, view), and a shard of the plan alone: an interrupted run
resumes with the shards that are missing, and the same call on a complete data set does nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mimic3d import cameras as geometry
from mimic3d import randomness
from mimic3d_platform.cluster.tasks import run_pieces, start_workers
from mimic3d_platform.data.format.image_files import encode_png
from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.format.manifest_file import find_manifest
from mimic3d_platform.data.format.write_shards import (
    SHARD_BYTES,
    Layout,
    Row,
    ShardRecord,
    complete_set,
    open_layout,
    read_record,
    write_manifest,
    write_record,
    write_shard,
)
from mimic3d_platform.data.render.debian_cars import load_cars
from mimic3d_platform.data.render.meshes import Mesh, load_folder
from mimic3d_platform.data.render.ray_caster import RayCaster
from mimic3d_platform.data.render.recolour import recolour
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings
from mimic3d_platform.storage.digests import sha256, sha256_of_json

# Larger numbers are typing errors, or need more memory than a worker has.
_LIMITS = {
    "resolution": 2048,
    "models": 1_000_000,
    "colourings": 1_000_000,
    "views": 1_000_000,
    "supersample": 16,
}
_MOST_SIDE = 4096
_MOST_IMAGES = 100_000_000
_FOCALS = (0.1, 50.0)
_RAYS_AT_ONCE = 4_000_000

# To be raised when the renderer gives other pixels, so that shards of an older version are not taken for
# shards of the same plan.
RENDERER_VERSION = 2

RADIUS = 1.7
# The focal length of EG3D's ShapeNet-Cars, in image widths.
FOCAL = 1.0254
LOWEST, HIGHEST = math.radians(5), math.radians(60)

# Colourings of Debian's cars, which are few, where none are asked for.
_CAR_COLOURINGS = 16

_COMPRESSION = 1  # of PNG files: rendering should not wait for it
_MIN_SHARD_ROWS = 256
_MANY_SHARDS = 64

# Ray casters of the models that this process rendered last: the identities of a model are in many shards.
_MOST_CASTERS = 16
_casters: dict[str, RayCaster] = {}


@dataclass(frozen=True)
class RenderedViews:
    """A part of a shard: some views of one identity."""

    model: int
    colouring: int
    views: range


@dataclass(frozen=True)
class RenderPlan:
    """All that the images depend on.

    Attributes:
        models: number of meshes.
        colourings: identities made of each mesh by repainting it; 0 for one in its own colours.
        views: images of each identity.
        supersample: S, for S×S rays per pixel.
        focal: focal length in image widths.
        meshes: digest of the meshes.
    """

    resolution: int
    models: int
    colourings: int
    views: int
    seed: int
    supersample: int
    focal: float
    meshes: str
    renderer: int = RENDERER_VERSION

    @property
    def digest(self) -> str:
        """SHA-256 of the plan."""
        return sha256_of_json(asdict(self))

    @property
    def images(self) -> int:
        """Images of all identities together."""
        return self.models * self.identities * self.views

    @property
    def identities(self) -> int:
        """Identities made of each mesh."""
        return max(self.colourings, 1)

    def shards(self) -> list[list[RenderedViews]]:
        """The parts of each shard: identities in random order, those with many views divided."""
        order = randomness.permutation(self.seed, "identities", size=self.models * self.identities)
        pairs = [divmod(int(item), self.identities) for item in order]
        # A row takes at most 8 bytes per pixel: 3 of colour, 1 of mask, 4 of depth.
        most = max(SHARD_BYTES // (8 * self.resolution**2), 1)
        rows = min(max(_MIN_SHARD_ROWS, self.images // _MANY_SHARDS), most)
        step = max(rows // self.views, 1)
        cuts = [range(start, min(start + rows, self.views)) for start in range(0, self.views, rows)]
        parts = [RenderedViews(model, colouring, views) for model, colouring in pairs for views in cuts]
        return [parts[start : start + step] for start in range(0, len(parts), step)]


def sample_cameras(seed: int, identity: str, views: int, focal: float = FOCAL) -> torch.Tensor:
    """(views, 25) labels, uniform by area on the upper hemisphere between pitch 5° and 60°.

    View v of an identity does not depend on the number of views.
    """
    random = np.stack([randomness.uniform(seed, f"camera {identity}", view, size=2) for view in range(views)])
    yaw = torch.from_numpy(random[:, 0] * 2 * math.pi - math.pi)
    low, high = math.sin(LOWEST), math.sin(HIGHEST)
    pitch = torch.from_numpy(np.arcsin(low + random[:, 1] * (high - low)))
    return geometry.look_at(geometry.on_sphere(yaw, pitch, RADIUS), focal=focal)


def render_shard(index: int, layout: Layout, plan: RenderPlan, meshes: list[Mesh]) -> ShardRecord:
    """Renders and writes shard `index`, unless an interrupted run of the same plan has completed it."""
    if (record := read_record(layout, index, plan.digest)) is not None:
        return record
    rows = []
    for part in plan.shards()[index]:
        rows += _render_identity(_caster(meshes[part.model]), part.colouring, part.views, plan)
    order = randomness.permutation(plan.seed, "rows", index, size=len(rows))
    record = write_shard(layout, index, [rows[position] for position in order])
    write_record(layout, record, plan.digest)
    return record


def _caster(mesh: Mesh) -> RayCaster:
    """The ray caster of a mesh, from those of this process's last models if it is there."""
    key = mesh.digest()
    caster = _casters.pop(key, None) or RayCaster(mesh)
    _casters[key] = caster
    if len(_casters) > _MOST_CASTERS:
        del _casters[next(iter(_casters))]
    return caster


def _render_identity(caster: RayCaster, colouring: int, chosen: range, plan: RenderPlan) -> list[Row]:
    """The rows of the views `chosen` of one identity."""
    mesh = caster.mesh
    identity = f"{mesh.identifier}/{colouring}" if plan.colourings else mesh.identifier
    cameras = sample_cameras(plan.seed, identity, chosen.stop, plan.focal)[chosen.start :]
    colours = recolour(mesh, plan.seed, colouring) if plan.colourings else mesh.colours
    rows = []
    for part in cameras.split(max(_RAYS_AT_ONCE // (plan.resolution * plan.supersample) ** 2, 1)):
        views = caster.render(colours, part, plan.resolution, plan.supersample)
        rows += [
            {
                "image": encode_png(Image.fromarray(views.images[view]), _COMPRESSION),
                "camera": part[view].numpy(),
                "identity": identity,
                "depth": views.depth[view].astype("<f4").tobytes(),
                "mask": encode_png(Image.fromarray(views.mask[view]), _COMPRESSION),
            }
            for view in range(len(part))
        ]
    return rows


def render_dataset(
    dest_uri: str,
    resolution: int,
    *,
    models: int | None = None,
    colourings: int | None = None,
    views: int,
    seed: int,
    meshes: Path | None = None,
    supersample: int = 3,
    focal: float = FOCAL,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Renders a data set into the folder `dest_uri`, shard by shard, as Ray tasks.

    Args:
        resolution: R, pixels; images are R×R.
        models: number of models to use; all when None.
        colourings: identities made of each model by repainting it; 0 for one in its own colours. When None,
            0 for `meshes` and 16 for Debian's cars.
        views: images of each identity.
        meshes: a folder of OBJ, GLB, glTF or PLY files; Debian's cars when None.
        supersample: S, for S×S rays per pixel.
        focal: focal length in image widths.
        overwrite: replace another data set at `dest_uri`.
        on_progress: called with the images done and all images.
    Returns:
        the manifest of the new data set, or of a complete one that the same arguments made before.
    Raises:
        UserError: a number is out of range, no mesh can be used, another data set is at `dest_uri`, or
            storage or Ray cannot be reached.
    """
    if colourings is None:
        colourings = 0 if meshes else _CAR_COLOURINGS
    _check_numbers(resolution, models, colourings, views, supersample, focal)
    complete = not overwrite and find_manifest(dest_uri) is not None
    if not complete:
        # Workers start while this process reads the meshes. Errors of Ray are raised below, by `run_pieces`.
        with contextlib.suppress(UserError):
            start_workers(render_shard)
    loaded = (load_folder(meshes) if meshes else load_cars(get_settings().home / "cache"))[:models]
    plan = RenderPlan(
        resolution=resolution,
        models=len(loaded),
        colourings=colourings,
        views=views,
        seed=seed,
        supersample=supersample,
        focal=focal,
        meshes=sha256("".join(mesh.digest() for mesh in loaded).encode()),
    )
    if plan.images > _MOST_IMAGES:
        raise UserError(
            f"{plan.models} models × {plan.identities} colourings × {views} views are {plan.images} images: "
            f"render {_MOST_IMAGES} at most"
        )
    progress = on_progress or (lambda done, total: None)
    if complete and (former := complete_set(dest_uri, plan.digest)) is not None:
        progress(former.count, former.count)
        return former
    layout = open_layout(dest_uri, resolution, overwrite=overwrite, plan=plan.digest)
    done = 0

    def count(record: ShardRecord) -> None:
        nonlocal done
        done += record.shard.rows
        progress(done, plan.images)

    progress(0, plan.images)
    records = run_pieces(render_shard, len(plan.shards()), layout, plan, loaded, on_result=count)
    provenance = {"tool": "mimic3d data render", "plan": plan.digest, **asdict(plan)}
    provenance |= {"radius": RADIUS, "models": [_attribution(mesh) for mesh in loaded]}
    return write_manifest(layout, records, provenance, [mesh.licence for mesh in loaded])


def _check_numbers(
    resolution: int, models: int | None, colourings: int, views: int, supersample: int, focal: float
) -> None:
    """Raises a `UserError` for an argument of `render_dataset` that is out of range."""
    numbers = {
        "resolution": resolution,
        "models": models,
        "colourings": colourings or None,
        "views": views,
        "supersample": supersample,
    }
    for name, value in numbers.items():
        if value is not None and not 1 <= value <= _LIMITS[name]:
            raise UserError(f"{name} is {value}: give 1 to {_LIMITS[name]}")
    if resolution * supersample > _MOST_SIDE:
        raise UserError(
            f"resolution {resolution} times supersample {supersample} is more than {_MOST_SIDE}: lower either"
        )
    if not _FOCALS[0] <= focal <= _FOCALS[1]:
        raise UserError(f"focal is {focal}: give {_FOCALS[0]:g} to {_FOCALS[1]:g}, in image widths")


def _attribution(mesh: Mesh) -> dict[str, str]:
    """The author and licence of a model, for the manifest's provenance."""
    return {
        "identifier": mesh.identifier,
        "name": mesh.name,
        "author": mesh.author,
        "licence": mesh.licence,
        "source": mesh.source,
    }
