"""What metrics ask of a subject: of a generator and of images alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mimic3d.evaluation.metric import Need, Views

# The branch of images that no generator of ours made.
IMAGES = "images"


class Opened(Protocol):
    """A subject that a worker has opened."""

    branches: tuple[str, ...]

    def images(
        self, rows: Sequence[int], *, other_camera: bool = False, truncation: float = 1.0
    ) -> dict[str, Tensor]:
        """By branch, (n, 3, R, R) uint8: the images of these numbers.

        Args:
            other_camera, truncation: as `mimic3d.evaluation.generated.generated_images`; only generators heed
                them.
        """

    def views(self, number: int, count: int) -> dict[str, Views]:
        """By branch, at most `count` views of object `number`."""

    def surface(self, number: int, branch: str) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (V, 3), world units, and faces (F, 3) of object `number`.

        Raises:
            NoSurfaceError: the object's density nowhere crosses the level of a surface.
            ValueError: the subject is no generator.
        """
        raise ValueError("images have no surface")


class Subject(Protocol):
    """A subject as it travels to workers.

    Attributes:
        uri: as the user gave it.
        digest: SHA-256 of what it consists of.
        resolution: of its images.
        branches: of its images; `images` for those that no generator made.
        has: what metrics can ask of it.
        most_images, most_objects: how many there are; None for a generator, which makes as many as asked.
    """

    @property
    def uri(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def resolution(self) -> int: ...
    @property
    def branches(self) -> tuple[str, ...]: ...
    @property
    def has(self) -> frozenset[Need]: ...
    @property
    def most_images(self) -> int | None: ...
    @property
    def most_objects(self) -> int | None: ...

    def open(self, seed: int, device: torch.device) -> Opened:
        """Loads it into this process."""
