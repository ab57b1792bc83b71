"""Metrics of multi-view consistency by comparing views directly, with known cameras and no learned judge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mimic3d.cameras import split_label
from mimic3d.evaluation.consistency import DEPTH_TOLERANCE, DepthView, depth_view, rotated, warp_view
from mimic3d.evaluation.detail import BANDS, FLOOR, band_sums, bands, correlation
from mimic3d.evaluation.metric import RatioMetric, ViewMetric, Views
from mimic3d.evaluation.ssim import ssim_map
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator

# Frames that a window of the spatiotemporal texture needs.
_FEWEST_FRAMES = 5
# Views are compared with those about this far from them, as seen from the origin, radians.
ANGLE, _LEAST_ANGLE, _MOST_ANGLE = 0.2, 0.02, 0.6


def neighbours(views: Views) -> Iterator[tuple[int, int]]:
    """Pairs of views, the second the one whose direction is most nearly `ANGLE` from the first's."""
    position = split_label(views.cameras)[0][:, :3, 3].double()
    direction = torch.nn.functional.normalize(position, dim=1)
    angles = (direction @ direction.T).clamp(-1, 1).acos()
    off = (angles - ANGLE).abs()
    off[(angles < _LEAST_ANGLE) | (angles > _MOST_ANGLE)] = math.inf
    for view, other in enumerate(off.argmin(dim=1).tolist()):
        if math.isfinite(off[view, other]):
            yield view, other


def _warped(views: Views, content: Tensor) -> Iterator[tuple[int, Tensor, Tensor, int]]:
    """For each pair: the first view's number, the second's `content` warped into it, and the pixels.

    Args:
        content: (V, C, R, R), the images or a function of them.
    Yields:
        Number, (1, C, R, R), (1, 1, R, R) bool of the pixels compared, and the number of the object's pixels.
    """
    assert views.depth is not None and views.opacity is not None
    for first, second in neighbours(views):
        a, b = (
            DepthView(
                views.images[view, None],
                views.depth[view, None],
                views.opacity[view, None],
                views.cameras[view, None],
            )
            for view in (first, second)
        )
        yield first, *warp_view(a, b, content[second, None], DEPTH_TOLERANCE * views.box)


@torch.no_grad()
def two_views(
    G: Generator,
    w: Tensor,
    camera: Tensor,
    branch: str,
    *,
    yaw: float = ANGLE,
    max_points: int = DEFAULT_MAX_POINTS,
) -> Views:
    """Two views of an identity, `yaw` / 2 radians to either side of `camera`.

    Args:
        w: (1, num_ws, w_dim).
        camera: (1, 25).
        branch: "2d" or "3d".
        max_points: sample points in memory at a time; see `Generator.view`.
    """
    a, b = (depth_view(G, w, rotated(camera, side * yaw / 2), branch, max_points) for side in (-1, 1))
    images, depth, opacity, cameras = (torch.cat(parts).cpu() for parts in zip(a, b, strict=True))
    return Views(images, cameras, G.rendering.box_warp, depth, opacity)


class WarpDetail(ViewMetric):
    kind = "warp_detail"
    needs = ("cameras", "depth")
    direction = "up"
    range = "-1 to 1; 1: all detail agrees, 0: none does, or there is none"
    about = (
        "correlation of the detail of a view with that of a neighbour, warped into it through the depth; "
        "the headline figure of consistency while training"
    )
    fooled_by = "depth that hides contradictions (see warp_share); noise in depth alone"

    def part(self, views: Views) -> Sequence[float]:
        detail = bands(views.images)
        total = torch.zeros(3 * BANDS, dtype=torch.float64)
        for view, warped, same, _ in _warped(views, detail):
            total += torch.tensor(band_sums(detail[view, None], warped, same), dtype=torch.float64)
        return total.tolist()

    def value(self, sums: Tensor) -> float:
        return correlation(sums)


class WarpPsnr(ViewMetric):
    kind = "warp_psnr"
    needs = ("cameras", "depth")
    direction = "up"
    range = "0 to ∞ dB"
    about = "PSNR of a view and a neighbour, warped into it through the depth"
    fooled_by = "blur, and objects of one colour: read it beside warp_detail"

    def part(self, views: Views) -> Sequence[float]:
        error, count = 0.0, 0
        for view, warped, same, _ in _warped(views, views.images):
            square = (warped - views.images[view, None]).square().mean(dim=1, keepdim=True)
            error += float(square[same].double().sum())
            count += int(same.sum())
        return error, count

    def value(self, sums: Tensor) -> float:
        return psnr(sums)


class WarpSsim(RatioMetric):
    kind = "warp_ssim"
    needs = ("cameras", "depth")
    direction = "up"
    range = "-1 to 1"
    about = "SSIM (Gaussian window, σ 1.5) of the same; pixels that cannot be compared count as equal"
    fooled_by = "blur, and objects of one colour"

    def part(self, views: Views) -> Sequence[float]:
        total, count = 0.0, 0
        for view, warped, same, _ in _warped(views, views.images):
            image = views.images[view, None]
            total += float(ssim_map(torch.where(same, warped, image), image)[same].double().sum())
            count += int(same.sum())
        return total, count


class WarpLpips(RatioMetric):
    kind = "warp_lpips_vgg16"
    network = "lpips-vgg16"
    needs = ("cameras", "depth")
    direction = "down"
    range = "0 to about 1"
    about = "LPIPS on VGG16 of the same; pixels that cannot be compared count as equal"
    fooled_by = "blur, and small objects, whose surroundings are equal"

    @torch.no_grad()
    def part(self, views: Views) -> Sequence[float]:
        assert views.perceptual is not None
        pairs = [
            (views.images[view], torch.where(same, warped, views.images[view, None])[0])
            for view, warped, same, _ in _warped(views, views.images)
        ]
        if not pairs:
            return 0.0, 0.0
        image, warped = (torch.stack(part) for part in zip(*pairs, strict=True))
        return float(views.perceptual(warped, image).double().sum()), float(len(pairs))


class WarpHed(WarpLpips):
    kind = "warp_perceptual_hedvgg16"
    network = "hed-vgg16"
    range = "0 to ∞"
    about = "the same distance on HED's VGG16, measured where the network of LPIPS cannot be had"


class WarpShare(ViewMetric):
    kind = "warp_share"
    needs = ("cameras", "depth")
    direction = "up"
    range = "0 to 1; below 1 also for true shapes, which occlude themselves"
    about = "share of the object's pixels that a neighbour's depth does not contradict"
    fooled_by = "flat objects"

    def part(self, views: Views) -> Sequence[float]:
        compared, visible = 0, 0
        for _, _, same, seen in _warped(views, views.images):
            compared += int(same.sum())
            visible += seen
        return compared, visible

    def value(self, sums: Tensor) -> float:
        return float(sums[0] / sums[1].clamp(min=1))


class StripCoherence(RatioMetric):
    kind = "strip_coherence"
    needs = ("cameras", "orbit")
    direction = "up"
    range = "0 to 1; 1: straight strips, 0: noise"
    about = (
        "how straight the strips of the spatiotemporal texture are: coherence of its structure tensor, "
        "weighted by gradients (texture: GRAM-HD)"
    )
    fooled_by = "one image repeated, texture that is glued to the screen, blur"

    def part(self, views: Views) -> Sequence[float]:
        if len(views.images) < _FEWEST_FRAMES:
            return 0.0, 0.0
        # Every row of the image is a texture (time, x) of its own: (H, 3, V, W).
        texture = views.images.permute(2, 1, 0, 3)
        along_time = texture[:, :, 2:, 1:-1] - texture[:, :, :-2, 1:-1]
        along_row = texture[:, :, 1:-1, 2:] - texture[:, :, 1:-1, :-2]

        def smooth(values: Tensor) -> Tensor:
            return torch.nn.functional.avg_pool2d(values.sum(dim=1, keepdim=True), 3, 1)

        tt, tx = smooth(along_time.square()), smooth(along_time * along_row)
        xx = smooth(along_row.square())
        split = ((tt - xx).square() + 4 * tx.square()).sqrt()
        # Six differences of two noisy values each.
        floor = 6 * 2 * FLOOR**2
        return float(split.double().sum()), float((tt + xx + floor).double().sum())


class ImitationPsnr(ViewMetric):
    kind = "imitation_psnr"
    needs = ("cameras", "both branches")
    direction = "up"
    range = "0 to ∞ dB"
    about = "PSNR of the 3D branch's images and those of the 2D branch that it imitates"
    fooled_by = "blur of both branches"

    def part(self, views: Views) -> Sequence[float]:
        assert views.imitated is not None
        square = (views.images - views.imitated).square().mean(dim=1)
        return float(square.double().sum()), square.numel()

    def value(self, sums: Tensor) -> float:
        return psnr(sums)


class ImitationDetail(ViewMetric):
    kind = "imitation_detail"
    needs = ("cameras", "both branches")
    direction = "up"
    range = "-1 to 1"
    about = "correlation of the detail of both branches"
    fooled_by = "a 2D branch whose detail is wrong, imitated"

    def part(self, views: Views) -> Sequence[float]:
        assert views.imitated is not None
        everywhere = torch.ones_like(views.images[:, :1], dtype=torch.bool)
        return band_sums(bands(views.images), bands(views.imitated), everywhere)

    def value(self, sums: Tensor) -> float:
        return correlation(sums)


def psnr(sums: Tensor) -> float:
    """In dB, for a range of 2, of a sum of squared errors and a number of pixels; NaN of none.

    An error below that of images of 8 bits counts as that: 59 dB at most.
    """
    error, count = sums.tolist()
    if not count > 0:
        return math.nan
    return 10 * math.log10(4 / max(error / count, (2 / 255) ** 2 / 12))
