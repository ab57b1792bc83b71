"""The pictures of an evaluation's report: samples, views, shapes, fitted fields, nearest real images."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimic3d.evaluation.fitted_field import held_out
from mimic3d.evaluation.geometry import normals
from mimic3d.evaluation.metric import Views
from mimic3d.evaluation.registry import VIEWS
from mimic3d.evaluation.texture import stack_row
from mimic3d.export.animation import save_animation
from mimic3d.export.grid import MIN_PANEL, image_grid
from mimic3d.rendering.images import to_uint8
from mimic3d_platform.evaluation.image_subjects import read_rows
from mimic3d_platform.evaluation.pieces import GENERATED, REALS, Plan, concatenated, stored

SAMPLES, COLUMNS, VIEWS_SHOWN, NEIGHBOURS_SHOWN, NEAREST = 16, 8, 6, 6, 3
_FPS = 12
_OPAQUE = 0.5

Picture = tuple[str, str, bytes]
"""A caption, a MIME type, and the file."""


def draw_pictures(_: int, plan: Plan) -> list[Picture]:
    """All pictures of a report, in its order; the work of a Ray task, since a generator draws some."""
    device = torch.device("cuda" if plan.gpu and torch.cuda.is_available() else "cpu")
    opened = plan.subject.open(plan.seed, device)
    count = min(SAMPLES, plan.images)
    reals = read_rows(plan.data_uri, plan.data, np.linspace(0, plan.data.count - 1, SAMPLES).astype(int))
    pictures = [_png("Real images", _sheet(reals))]
    samples = opened.images(range(count))
    for branch, images in samples.items():
        pictures.append(_png(f"Samples, {branch}", _sheet(images.cpu())))
    if plan.objects and "cameras" in plan.subject.has:
        fields = any("field" in metric.needs for metric in VIEWS if metric.kind in plan.view_metrics)
        for branch, views in opened.views(0, plan.views).items():
            pictures += _pictures_of_views(branch, views, fields=fields)
    for branch, images in samples.items():
        pictures.append(_neighbours(branch, images.cpu(), plan))
    return pictures


def _pictures_of_views(branch: str, views: Views, *, fields: bool) -> list[Picture]:
    count = len(views.images)
    some = np.linspace(0, count - 1, min(VIEWS_SHOWN, count)).astype(int).tolist()
    rows, captions = [list(views.images[some])], ["image"]
    if views.depth is not None and views.opacity is not None:
        seen = views.opacity > _OPAQUE
        near, far = (
            (float(views.depth[seen].min()), float(views.depth[seen].max())) if seen.any() else (0.0, 1.0)
        )
        depth = 1 - 2 * ((views.depth - near) / max(far - near, 1e-6)).clamp(0, 1)
        shown = torch.where(seen, depth, 1.0).expand(-1, 3, -1, -1)
        rows.append(list(shown[some]))
        facing = torch.where(seen, normals(views.depth, views.cameras), 1.0)
        rows.append(list(facing[some]))
        captions += ["depth", "normals"]
    pictures = [_png(f"Views of one object, {branch}: {', '.join(captions)}", image_grid(rows))]
    if views.orbit and count > 1:
        pictures.append((f"Orbit, {branch}", "image/webp", _animation(views.images)))
        texture = stack_row(views.images)[None]
        side = views.images.shape[-1]
        wide = torch.nn.functional.interpolate(texture, (side, side), mode="bilinear")[0]
        pictures.append(
            _png(f"Spatiotemporal texture, {branch}: the middle row along the orbit", image_grid([[wide]]))
        )
    if fields:
        fitted = held_out(views).images
        error = (4 * (fitted - views.images).abs()).clamp(0, 2) - 1
        rows = [list(part[some]) for part in (views.images, fitted, error)]
        caption = f"Fitted fields, {branch}: view, the field fitted to the other views, 4 × the difference"
        pictures.append(_png(caption, image_grid(rows)))
    return pictures


def _neighbours(branch: str, images: Tensor, plan: Plan) -> Picture:
    """Samples, each with the real images that are nearest to it in the features."""
    generated = concatenated(list(stored(plan, GENERATED, branch)))[:NEIGHBOURS_SHOWN]
    reals = concatenated(list(stored(plan, REALS, REALS)))
    count = min(NEAREST, len(reals))
    nearest = torch.cdist(generated.double(), reals.double()).topk(count, largest=False).indices
    rows = [
        [image, *read_rows(plan.data_uri, plan.data, numbers.numpy())]
        for image, numbers in zip(images[: len(generated)], nearest, strict=True)
    ]
    columns = [("sample", 1), ("nearest real images", count)]
    return _png(f"Nearest neighbours, {branch}, by {plan.network}", image_grid(rows, columns=columns))


def _sheet(images: Tensor) -> Image.Image:
    return image_grid([list(images[start : start + COLUMNS]) for start in range(0, len(images), COLUMNS)])


def _png(caption: str, picture: Image.Image) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return caption, "image/png", buffer.getvalue()


def _animation(images: Tensor) -> bytes:
    """An animated WebP of views, there and back, enlarged with their pixels repeated."""
    factor = max(1, -(-2 * MIN_PANEL // images.shape[-1]))
    shown = [
        np.repeat(np.repeat(image, factor, 0), factor, 1)
        for image in to_uint8(images).cpu().permute(0, 2, 3, 1).numpy()
    ]
    buffer = io.BytesIO()
    save_animation(buffer, [*shown, *shown[-2:0:-1]], _FPS)
    return buffer.getvalue()
