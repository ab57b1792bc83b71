"""Adaptive discriminator augmentation (Karras et al., 2020, "Training GANs with limited data", appendix B).

Geometric and colour transforms, each with the same probability, of all that the discriminators are given. The
probability follows how far the dual discriminator overfits. Written from the paper.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mimic3d.config import Config

TRANSLATION, SCALING = 0.125, 0.2 * math.log(2)
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5 * math.log(2), math.log(2)

# The low-pass filter of the orthogonal wavelet sym6 (Daubechies): up-sampling by it and down-sampling by its
# mirror image is the identity.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
# Transforms are centred half a tap before the middle of the filter's 12 taps (5.5, counted from 0), which is
# within a twentieth of a pixel of its centre of mass.
MIDDLE = 5


class Augmentation(NamedTuple):
    """One transform for each sample, or none at all."""

    warp: Tensor | None
    """(N, 3, 3), homogeneous, moves points of the image, which is [-1, 1] to either side, y downwards."""
    colour: Tensor | None
    """(N, 3, 4), an affine map of RGB in [-1, 1]."""

    def part(self, rows: slice | Tensor) -> Augmentation:
        """The transforms of some samples."""
        if self.warp is None or self.colour is None:
            return self
        return Augmentation(self.warp[rows], self.colour[rows])

    def apply(self, images: Tensor) -> Tensor:
        """(N, 3k, R, R) to the same: every three channels are an RGB image of the same place.

        Differentiable in the images, twice; without transforms the images themselves.
        """
        if self.warp is None or self.colour is None:
            return images
        warped = warp_images(images, self.warp)
        rgb = warped.unflatten(1, (-1, 3))
        matrix, offset = self.colour[:, :, :3], self.colour[:, :, 3]
        rgb = torch.einsum("nij,nkjhw->nkihw", matrix, rgb) + offset[:, None, :, None, None]
        return rgb.flatten(1, 2)


def sample_augmentation(batch: int, p: float, resolution: int, source: torch.Generator) -> Augmentation:
    """Samples each transform of the pipeline with probability `p` for each sample (appendix B).

    Args:
        resolution: of the images; the first translation is by whole pixels.
    """
    if p <= 0:
        return Augmentation(None, None)
    return Augmentation(_sample_warp(batch, p, resolution, source), _sample_colour(batch, p, source))


def _sample_warp(batch: int, p: float, resolution: int, source: torch.Generator) -> Tensor:
    # The two rotations together happen as often as any other transform.
    p_rotation = 1 - math.sqrt(1 - min(p, 1.0))

    def uniform(*size: int) -> Tensor:
        return torch.rand(batch, *size, generator=source)

    def normal(*size: int) -> Tensor:
        return torch.randn(batch, *size, generator=source)

    flip = 1 - 2 * (uniform() * 2).floor()
    warp = _where(uniform() < p, _scaling(flip, torch.ones(batch)))
    quarter = (uniform() * 4).floor() * (math.pi / 2)
    warp = _where(uniform() < p, _rotation(-quarter)) @ warp
    shift = (uniform(2) * 2 - 1) * TRANSLATION
    shift = (shift * resolution).round() / resolution
    warp = _where(uniform() < p, _translation(shift)) @ warp
    scale = (normal() * SCALING).exp()
    warp = _where(uniform() < p, _scaling(scale, scale)) @ warp
    angle = (uniform() * 2 - 1) * math.pi
    warp = _where(uniform() < p_rotation, _rotation(-angle)) @ warp
    scale = (normal() * SCALING).exp()
    warp = _where(uniform() < p, _scaling(scale, 1 / scale)) @ warp
    angle = (uniform() * 2 - 1) * math.pi
    warp = _where(uniform() < p_rotation, _rotation(-angle)) @ warp
    return _where(uniform() < p, _translation(normal(2) * TRANSLATION)) @ warp


def _sample_colour(batch: int, p: float, source: torch.Generator) -> Tensor:
    def uniform() -> Tensor:
        return torch.rand(batch, generator=source)

    def normal() -> Tensor:
        return torch.randn(batch, generator=source)

    brightness = (normal() * BRIGHTNESS)[:, None].expand(-1, 3)
    colour = _where(uniform() < p, _affine(torch.eye(3).expand(batch, 3, 3), brightness))
    contrast = (normal() * CONTRAST).exp()
    colour = _where(uniform() < p, _affine(torch.eye(3) * contrast[:, None, None])) @ colour
    luma = torch.full((3, 3), 1 / 3)  # the projection on the axis of grey
    flip = (uniform() * 2).floor()[:, None, None]
    colour = _where(uniform() < p, _affine(torch.eye(3) - 2 * luma * flip)) @ colour
    angle = (uniform() * 2 - 1) * math.pi
    colour = _where(uniform() < p, _affine(hue_rotation(angle))) @ colour
    saturation = (normal() * SATURATION).exp()[:, None, None]
    colour = _where(uniform() < p, _affine(luma + (torch.eye(3) - luma) * saturation)) @ colour
    return colour[:, :3]


def hue_rotation(angle: Tensor) -> Tensor:
    """(N, 3, 3): rotations of RGB by (N,) radians around the axis of grey (Rodrigues' formula)."""
    luma = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return luma + (torch.eye(3) - luma) * cos + cross * sin


def _where(happens: Tensor, matrices: Tensor) -> Tensor:
    return torch.where(happens[:, None, None], matrices, torch.eye(matrices.shape[-1]))


def _affine(linear: Tensor, offset: Tensor | None = None) -> Tensor:
    matrix = torch.eye(linear.shape[-1] + 1).repeat(len(linear), 1, 1)
    matrix[:, :-1, :-1] = linear
    if offset is not None:
        matrix[:, :-1, -1] = offset
    return matrix


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return _affine(torch.diag_embed(torch.stack([x, y], dim=1)))


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _affine(torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1))


def _translation(share: Tensor) -> Tensor:
    """By shares of the image's side, (N, 2) of x and y."""
    return _affine(torch.eye(2).expand(len(share), 2, 2), share * 2)


def warp_images(images: Tensor, warp: Tensor) -> Tensor:
    """Transforms the content of images (N, C, R, R) by homogeneous matrices (N, 3, 3).

    The image is read at twice its resolution, between the up- and down-sampling of an orthogonal wavelet, so
    that transforms neither blur nor alias (appendix B.2). It is mirrored at its borders before it is
    up-sampled, as far as the transforms reach and at most once; beyond that it is black (0).
    """
    batch, channels, size, _ = images.shape
    taps = torch.tensor(SYM6, dtype=images.dtype, device=images.device)
    # Positions take float32, as the paper's, and float64 for images of float64.
    exact = torch.promote_types(images.dtype, torch.float32)

    # Output samples, as many beyond the border as the filter reaches, and the pixels they are read from.
    samples = torch.arange(2 * size + len(taps) - 2, device=images.device, dtype=exact)
    places = (samples - MIDDLE + 1) / size - 1
    v, u = torch.meshgrid(places, places, indexing="ij")
    points = torch.stack([u, v, torch.ones_like(u)], dim=-1)
    inverse = torch.linalg.inv(warp.to(exact))
    read = torch.einsum("nij,hwj->nhwi", inverse[:, :2], points)
    pixel = (read + 1) * (size / 2) - 0.5

    reach = 4  # of the filter around the doubled image's samples, in pixels
    beyond = torch.stack([reach - pixel.amin(dim=(0, 1, 2)), pixel.amax(dim=(0, 1, 2)) + reach - size + 1])
    (left, top), (right, bottom) = beyond.ceil().clamp(0, size - 1).int().tolist()
    x = F.pad(images, (left, right, top, bottom), mode="reflect").flatten(0, 1)[:, None]
    for kernel, stride in ((taps[None, None, None], (1, 2)), (taps[None, None, :, None], (2, 1))):
        x = F.conv_transpose2d(x, kernel * math.sqrt(2), stride=stride)
    # From here on, pixel i of the padded image stands at sample 2 i of the doubled one.
    width, height = 2 * (size + left + right), 2 * (size + top + bottom)
    x = x[..., MIDDLE : MIDDLE + height, MIDDLE : MIDDLE + width]
    x = x.unflatten(0, (batch, channels))[:, :, 0]
    sample = 2 * (pixel + pixel.new_tensor([left, top]))
    grid = (sample + 0.5) * (2 / pixel.new_tensor([width, height])) - 1
    x = _Read.apply(x, grid.to(images.dtype)).flatten(0, 1)[:, None]
    for kernel, stride in ((taps[None, None, None], (1, 2)), (taps[None, None, :, None], (2, 1))):
        x = F.conv2d(x, kernel / math.sqrt(2), stride=stride)
    return x.unflatten(0, (batch, channels))[:, :, 0]


class _Read(torch.autograd.Function):
    """Bilinear reading, any number of times differentiable in the images.

    PyTorch's own grid_sample has no second derivative, which R1 takes; but it is linear in the images, and so
    is its adjoint.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(gradient, grid, ctx.shape), None


class _Spread(torch.autograd.Function):
    """The adjoint of `_Read`."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        bilinear, zeros = 0, 0
        place = gradient.new_empty(1).expand(shape)  # only its shape is looked at
        return torch.ops.aten.grid_sampler_2d_backward(
            gradient.contiguous(), place, grid, bilinear, zeros, False, (True, False)
        )[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Read.apply(gradient, grid), None, None


class AdaptiveProbability:
    """The probability of each transform, moved until the discriminator's sign on reals is at its target.

    r = E[sign D(real)] is 0 for a discriminator that cannot tell and 1 for one that knows its reals by heart
    (the paper, sec. 3.1).
    """

    def __init__(self, config: Config) -> None:
        self.settings, self.batch = config.augmentation, config.schedule.batch
        self.p = 0.0
        self._signs: list[Tensor] = []

    def observe(self, sign: Tensor, world_size: int) -> None:
        """Takes in the mean sign of D's logits on the reals of a phase, a scalar of this rank.

        The mean of all ranks is kept, so that a checkpoint, which one rank stores, has what all observed.
        """
        if self.settings.mode != "ada":
            return
        sign = sign.detach().clone()
        if world_size > 1:
            dist.all_reduce(sign)
            sign /= world_size
        self._signs.append(sign)

    def adjust(self, steps: int, pretrained: bool) -> None:
        """Moves the probability at the end of an interval.

        Args:
            steps: taken in all, the current one included.
            pretrained: whether training continues from trained weights, where the probability moves faster.
        """
        if steps % self.settings.interval:
            return
        mean = torch.stack([each.to(self._signs[-1].device) for each in self._signs]).mean()
        kimg = self.settings.kimg_resumed if pretrained else self.settings.kimg
        step = self.batch * self.settings.interval / (kimg * 1000)
        excess = float(mean) - self.settings.target
        direction = (excess > 0) - (excess < 0)
        self.p = min(max(self.p + direction * step, 0.0), 1.0)
        self._signs = []

    def state_dict(self) -> dict[str, Any]:
        """The probability, and the signs that were observed since the last adjustment."""
        return {"p": self.p, "signs": [sign.cpu() for sign in self._signs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.p, self._signs = state["p"], list(state["signs"])
