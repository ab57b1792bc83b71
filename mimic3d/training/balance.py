"""Making up for views that are rare in the data (the supplement's open question of profile views)."""

from __future__ import annotations

import torch
from torch import Tensor

from mimic3d.cameras import yaw_pitch_radius
from mimic3d.config import Config

BIN_DEGREES = 10.0


def rarity(label_pool: Tensor, pivot: Tensor | None = None) -> Tensor:
    """How rare each camera's direction is: the mean count of the cameras' bins over the count of its own.

    Directions are binned by yaw and pitch around `pivot`, 10 degrees a bin.

    Args:
        label_pool: (L, 25).
    Returns:
        (L,) float64; 1 for all where every bin that is seen is seen equally often.
    """
    yaw, pitch, _ = yaw_pitch_radius(label_pool, pivot)
    degrees = torch.stack([yaw, pitch], dim=1).rad2deg()
    _, bins, counts = torch.unique(
        (degrees / BIN_DEGREES).floor(), dim=0, return_inverse=True, return_counts=True
    )
    frequency = counts[bins].to(torch.float64)
    return frequency.mean() / frequency


class CameraBalance:
    """Weights of the data set's cameras for `data.camera_balance`, for generated and real images alike.

    A camera counts in proportion to its weight to the power of the balance. Generated images are drawn that
    often; a real image, which comes once an epoch, counts that much in the discriminators' losses.
    """

    def __init__(self, config: Config) -> None:
        self.strength = config.data.camera_balance
        self.pivot = torch.tensor(config.camera.pivot)
        self._seen: tuple[Tensor, Tensor | None] | None = None
        self._weights = torch.empty(0)
        self._by_camera: dict[bytes, float] = {}

    def of_pool(self, label_pool: Tensor, label_weights: Tensor | None) -> Tensor | None:
        """(L,), 1 on average, or None where nothing is to be made up for.

        Args:
            label_pool: (L, 25), all cameras of the data set.
            label_weights: (L,), as the data set gives them; from the cameras' `rarity` when None.
        Raises:
            ValueError: weights that are negative, not finite, all zero or not as many as the cameras.
        """
        if self.strength == 0:
            return None
        if self._seen is None or self._seen[0] is not label_pool or self._seen[1] is not label_weights:
            weights = rarity(label_pool, self.pivot) if label_weights is None else label_weights
            weights = weights.to(torch.float64)
            if len(weights) != len(label_pool) or not (weights.isfinite() & (weights >= 0)).all():
                raise ValueError("the data set's weights must be finite and 0 or more, one for each image")
            if not weights.any():
                raise ValueError("the data set's weights are all 0: one image at least must count")
            weights = weights.pow(self.strength).where(weights > 0, 0)
            self._weights = weights / weights.mean()
            rows = label_pool.cpu().contiguous().numpy()
            self._by_camera = dict(zip(map(bytes, rows), self._weights.tolist(), strict=True))
            self._seen = label_pool, label_weights
        return self._weights

    def of_reals(self, cameras: Tensor) -> Tensor | None:
        """(N,) weights of real images with `cameras` (N, 25), all of them in the pool that was last given.

        Raises:
            ValueError: a camera is not one of the pool's.
        """
        if self.strength == 0:
            return None
        rows = cameras.cpu().contiguous().numpy()
        try:
            return torch.tensor([self._by_camera[bytes(row)] for row in rows], dtype=torch.float32)
        except KeyError:
            raise ValueError(
                "an image's camera is not among the data set's, which data.camera_balance needs"
            ) from None
