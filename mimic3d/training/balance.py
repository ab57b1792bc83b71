"""Camera balancing: rare views count more in training (the supplement's open question of profile views)."""

from __future__ import annotations

import torch
from torch import Tensor

from mimic3d.config import Config
from mimic3d.training.camera_rarity import camera_rarity


class CameraBalance:
    """The weights of a data set's rows by `data.camera_balance`, for generated and for real images.

    A row's weight is its rarity to the power of `data.camera_balance`, scaled to a mean of 1. The rarity is
    the data set's column `weight`; a set without one is treated as if `mimic3d data ingest --balance` had
    written it, by `camera_rarity`. Cameras of generated images are drawn with a probability proportional to
    the weights; the discriminators' losses of a real image, which comes once an epoch, are multiplied by that
    of its camera: the mean weight of the rows that share it.
    """

    def __init__(self, config: Config) -> None:
        self.strength = config.data.camera_balance
        self._seen: tuple[Tensor, Tensor | None] | None = None
        self._weights = torch.empty(0)
        self._by_camera: dict[bytes, float] = {}

    def of_pool(self, label_pool: Tensor, label_weights: Tensor | None) -> Tensor | None:
        """(L,) weights with a mean of 1, or None where `data.camera_balance` is 0.

        Args:
            label_pool: (L, 25), all cameras of the data set.
            label_weights: (L,), the data set's column `weight`; `camera_rarity` of the pool when None.
        Raises:
            ValueError: weights that are negative, not finite, all zero or not as many as the cameras.
        """
        if self.strength == 0:
            return None
        if self._seen is None or self._seen[0] is not label_pool or self._seen[1] is not label_weights:
            rarity = label_weights
            if rarity is None:
                rarity = torch.from_numpy(camera_rarity(label_pool.cpu().numpy()))
            weights = rarity.to(torch.float64)
            if len(weights) != len(label_pool) or not (weights.isfinite() & (weights >= 0)).all():
                raise ValueError("the data set's weights must be finite and 0 or more, one for each image")
            if not weights.any():
                raise ValueError("the data set's weights are all 0: one image at least must count")
            weights = weights.pow(self.strength).where(weights > 0, 0)
            self._weights = weights / weights.mean()
            shared: dict[bytes, list[float]] = {}
            rows = label_pool.cpu().contiguous().numpy()
            for row, weight in zip(rows, self._weights.tolist(), strict=True):
                shared.setdefault(bytes(row), []).append(weight)
            self._by_camera = {camera: sum(each) / len(each) for camera, each in shared.items()}
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
