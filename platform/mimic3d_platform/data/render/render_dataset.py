"""Meshes to a data set: every (model, colouring) is an identity, each seen by its own cameras.

What a row holds is a function of (seed, model, colouring, view) and what a shard holds of the plan alone, so
a run that was killed goes on with the shards it lacks, and the same call on a finished set does nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimic3d import cameras as geometry
from mimic3d import randomness
from mimic3d_platform import storage
from mimic3d_platform.cluster.tasks import run_pieces, start_workers
from mimic3d_platform.data.format.dataset_card import model_records
from mimic3d_platform.data.format.manifest import MANIFEST, Manifest
from mimic3d_platform.data.format.write_shards import (
    SHARD_BYTES,
    Layout,
    ShardRecord,
    open_layout,
    read_record,
    sweep,
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

# Numbers beyond these are slips of the keyboard, or would need more memory than a worker has.
_MOST = {
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

# Raise it when the renderer draws other pixels: shards of an older renderer are then not taken for ours.
RENDERER = 2

RADIUS = 1.7
# EG3D's for ShapeNet-Cars, in image widths.
FOCAL = 1.0254
LOWEST, HIGHEST = math.radians(5), math.radians(60)

_MIN_SHARD_ROWS = 256
_MANY_SHARDS = 64

_MOST_CASTERS = 16
_casters: dict[str, RayCaster] = {}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """All that the images depend on, but the meshes' content, which `meshes` digests."""

    resolution: int
    models: int
    colourings: int
    views: int
    seed: int
    supersample: int
    focal: float
    meshes: str
    renderer: int = RENDERER

    @property
    def digest(self) -> str:
        """SHA-256 of the plan."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def images(self) -> int:
        return self.models * self.colourings * self.views

    def shards(self) -> list[list[tuple[int, int, range]]]:
        """The model, colouring and views of each shard, dealt at random; many views are cut into several."""
        order = randomness.permutation(self.seed, "identities", size=self.models * self.colourings)
        pairs = [divmod(int(item), self.colourings) for item in order]
        # PNG colour and mask are below the raw size, and depth is 4 bytes a pixel.
        most = max(SHARD_BYTES // (8 * self.resolution**2), 1)
        rows = min(max(_MIN_SHARD_ROWS, self.images // _MANY_SHARDS), most)
        step = max(rows // self.views, 1)
        cuts = [range(start, min(start + rows, self.views)) for start in range(0, self.views, rows)]
        parts = [(model, colouring, views) for model, colouring in pairs for views in cuts]
        return [parts[start : start + step] for start in range(0, len(parts), step)]


def sample_cameras(seed: int, identity: str, views: int, focal: float = FOCAL) -> torch.Tensor:
    """(views, 25) labels, uniform by area over the band of the upper hemisphere between 5° and 60°.

    View v of an identity is the same however many views are asked for.
    """
    draw = np.stack([randomness.uniform(seed, f"camera {identity}", view, size=2) for view in range(views)])
    yaw = torch.from_numpy(draw[:, 0] * 2 * math.pi - math.pi)
    low, high = math.sin(LOWEST), math.sin(HIGHEST)
    pitch = torch.from_numpy(np.arcsin(low + draw[:, 1] * (high - low)))
    return geometry.look_at(geometry.on_sphere(yaw, pitch, RADIUS), focal=focal)


def render_shard(index: int, layout: Layout, plan: Plan, meshes: list[Mesh]) -> ShardRecord:
    """Renders and writes one shard, or takes the one that an earlier run of the plan left."""
    if (record := read_record(layout, index, plan.digest)) is not None:
        return record
    rows = []
    for model, colouring, views in plan.shards()[index]:
        rows += _render_identity(_caster(meshes[model]), colouring, views, plan)
    order = randomness.permutation(plan.seed, "rows", index, size=len(rows))
    record = write_shard(layout, index, [rows[position] for position in order])
    write_record(layout, record, plan.digest)
    return record


def _caster(mesh: Mesh) -> RayCaster:
    """The mesh's, from this process's last few: shards deal the identities of a model at random."""
    key = mesh.digest()
    caster = _casters.pop(key, None) or RayCaster(mesh)
    _casters[key] = caster
    if len(_casters) > _MOST_CASTERS:
        del _casters[next(iter(_casters))]
    return caster


def _render_identity(caster: RayCaster, colouring: int, chosen: range, plan: Plan) -> list[dict[str, Any]]:
    identity = f"{caster.mesh.identifier}/{colouring}"
    cameras = sample_cameras(plan.seed, identity, chosen.stop, plan.focal)[chosen.start :]
    colours = recolour(caster.mesh, plan.seed, colouring)
    rows = []
    for part in cameras.split(max(_RAYS_AT_ONCE // (plan.resolution * plan.supersample) ** 2, 1)):
        views = caster.render(colours, part, plan.resolution, plan.supersample)
        rows += [
            {
                "image": _png(views.images[view]),
                "camera": part[view].numpy(),
                "identity": identity,
                "depth": views.depth[view].astype("<f4").tobytes(),
                "mask": _png(views.mask[view]),
            }
            for view in range(len(part))
        ]
    return rows


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()


def render_dataset(
    dest_uri: str,
    resolution: int,
    *,
    models: int | None = None,
    colourings: int,
    views: int,
    seed: int,
    meshes: Path | None = None,
    supersample: int = 3,
    focal: float = FOCAL,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Manifest:
    """Renders a data set into the folder `dest_uri`, shard by shard, as Ray tasks.

    Args:
        models: how many of the models, all when None.
        colourings: identities made of each model.
        views: images of each identity.
        meshes: a folder of OBJ, GLB or PLY files; Debian's cars when None.
        supersample: S, for S×S rays a pixel.
        focal: focal length in image widths.
        overwrite: replace another set at `dest_uri`.
        on_progress: called with the images done and all images, first with what was there.
    Raises:
        UserError: numbers out of range, no usable mesh, another set at `dest_uri`, storage or Ray out of
            reach.
    """
    numbers = {
        "resolution": resolution,
        "models": models,
        "colourings": colourings,
        "views": views,
        "supersample": supersample,
    }
    for name, value in numbers.items():
        if value is not None and not 1 <= value <= _MOST[name]:
            raise UserError(f"{name} is {value}: give 1 to {_MOST[name]}")
    if resolution * supersample > _MOST_SIDE:
        raise UserError(
            f"resolution {resolution} times supersample {supersample} is more than {_MOST_SIDE}: lower either"
        )
    if not _FOCALS[0] <= focal <= _FOCALS[1]:
        raise UserError(f"focal is {focal}: give {_FOCALS[0]:g} to {_FOCALS[1]:g}, in image widths")
    seal = storage.join(dest_uri, MANIFEST)
    there = not overwrite and storage.exists(seal)
    if not there:
        # While meshes are read here. Whatever is wrong with Ray is told where it is needed.
        with contextlib.suppress(UserError):
            start_workers(render_shard)
    loaded = (load_folder(meshes) if meshes else load_cars(get_settings().home / "cache"))[:models]
    plan = Plan(
        resolution=resolution,
        models=len(loaded),
        colourings=colourings,
        views=views,
        seed=seed,
        supersample=supersample,
        focal=focal,
        meshes=hashlib.sha256("".join(mesh.digest() for mesh in loaded).encode()).hexdigest(),
    )
    if plan.images > _MOST_IMAGES:
        raise UserError(
            f"{plan.models} models × {colourings} colourings × {views} views are {plan.images} images: "
            f"ask for {_MOST_IMAGES} at most"
        )
    progress = on_progress or (lambda done, total: None)
    if there:
        manifest = Manifest.from_json(storage.read_bytes(seal), dest_uri)
        if manifest.provenance.get("plan") == plan.digest:
            sweep(dest_uri, manifest)
            progress(manifest.count, manifest.count)
            return manifest
    layout = open_layout(dest_uri, resolution, overwrite=overwrite, plan=plan.digest)
    done = 0

    def count(record: ShardRecord) -> None:
        nonlocal done
        done += record.shard.rows
        progress(done, plan.images)

    progress(0, plan.images)
    records = run_pieces(render_shard, len(plan.shards()), layout, plan, loaded, on_result=count)
    provenance = {"tool": "mimic3d data render", "plan": plan.digest, **asdict(plan)}
    provenance |= {"radius": RADIUS, "models": model_records(loaded)}
    return write_manifest(layout, records, provenance, [mesh.licence for mesh in loaded])
