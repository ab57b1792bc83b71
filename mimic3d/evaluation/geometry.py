"""Metrics of the shape that depth and opacity show: against what the images show, and by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import ndimage
from torch import Tensor

from mimic3d.cameras import pixel_grid, rays
from mimic3d.evaluation.fitted_field import background, held_out
from mimic3d.evaluation.metric import RatioMetric, Views

# A pixel belongs to the object from this opacity on, and to the image's silhouette from this difference of
# its colour from the background's, in [-1, 1].
_OPAQUE, _DIFFERENT = 0.5, 0.1


class SilhouetteOverlap(RatioMetric):
    kind = "silhouette_iou"
    needs = ("cameras", "depth")
    direction = "up"
    range = "0 to 1"
    about = (
        "intersection over union of the opaque pixels and those whose colour differs from the background's"
    )
    fooled_by = "parts of the background's colour, which lower it; images whose background varies"

    def part(self, views: Views) -> Sequence[float]:
        assert views.opacity is not None
        opaque = views.opacity[:, 0] > _OPAQUE
        shown = (views.images - background(views.images)[:, None, None]).abs().amax(dim=1) > _DIFFERENT
        return float((opaque & shown).sum()), float((opaque | shown).sum())


class Floaters(RatioMetric):
    kind = "floaters"
    needs = ("cameras", "depth")
    direction = "down"
    range = "0 to 1"
    about = "share of the opaque pixels outside the largest connected part of the silhouette"
    fooled_by = "floaters in front of the object"

    def part(self, views: Views) -> Sequence[float]:
        assert views.opacity is not None
        apart, opaque = 0, 0
        for silhouette in (views.opacity[:, 0] > _OPAQUE).cpu().numpy():
            labels, count = ndimage.label(silhouette)
            sizes = ndimage.sum_labels(silhouette, labels, range(1, count + 1)) if count else [0]
            apart += int(silhouette.sum() - max(sizes))
            opaque += int(silhouette.sum())
        return apart, opaque


class FieldDepth(RatioMetric):
    kind = "field_depth"
    needs = ("cameras", "depth", "field")
    direction = "down"
    range = "0 to 1, in sides of the box"
    about = "mean difference of the depth and that of the field fitted to the other half of the views"
    fooled_by = "surfaces of one colour, whose position no image shows"

    def part(self, views: Views) -> Sequence[float]:
        assert views.depth is not None
        field, both = _field_and_overlap(views)
        difference = (views.depth - field)[both].abs() / views.box
        return float(difference.double().sum()), float(both.sum())


class FieldNormals(RatioMetric):
    kind = "field_normals"
    needs = ("cameras", "depth", "field")
    direction = "down"
    range = "0 to 180 degrees"
    about = "mean angle between the normals of the depth and those of the field's depth"
    fooled_by = "surfaces of one colour, whose normals the field guesses"

    def part(self, views: Views) -> Sequence[float]:
        assert views.depth is not None
        field, both = _field_and_overlap(views)
        ours, theirs = (normals(depth, views.cameras) for depth in (views.depth, field))
        angle = (ours * theirs).sum(dim=1, keepdim=True).clamp(-1, 1).acos().rad2deg()
        # A normal takes the pixels to the right and below.
        whole = both[..., :-1, :-1] & both[..., 1:, :-1] & both[..., :-1, 1:]
        return float(angle[..., :-1, :-1][whole].double().sum()), float(whole.sum())


def normals(depth: Tensor, cameras: Tensor) -> Tensor:
    """(V, 3, R, R): unit normals in world space, towards the camera; the last row and column repeat others.

    Args:
        depth: (V, 1, R, R), along the rays of the cameras.
        cameras: (V, 25).
    """
    resolution = depth.shape[-1]
    origins, directions = rays(cameras, pixel_grid(resolution, device=depth.device))
    points = (origins + directions * depth.flatten(1)[..., None]).unflatten(1, (resolution, resolution))
    right, down = points[:, :-1, 1:] - points[:, :-1, :-1], points[:, 1:, :-1] - points[:, :-1, :-1]
    found = torch.nn.functional.normalize(torch.linalg.cross(down, right), dim=-1).permute(0, 3, 1, 2)
    return torch.nn.functional.pad(found, (0, 1, 0, 1), mode="replicate")


def _field_and_overlap(views: Views) -> tuple[Tensor, Tensor]:
    """(V, 1, R, R): the depth of the field that was not fitted to the view, and where both are opaque."""
    assert views.opacity is not None
    field = held_out(views)
    return field.depth, (field.opacity > _OPAQUE) & (views.opacity > _OPAQUE)
