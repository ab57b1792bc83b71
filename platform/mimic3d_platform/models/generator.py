"""The Python interface to a trained generator: load it by its URI, render, interpolate, make meshes.

from mimic3d_platform.models.generator import Generator

cars = Generator.load("builtin:cars")
cars.draw([0, 1], yaw=0.5)[0].save("car.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mimic3d.config import Config
from mimic3d.export.latents import interpolate as interpolate_latents
from mimic3d.export.mesh import extract_mesh
from mimic3d.export.orbits import around_pivot
from mimic3d.networks.generator import Generator as Network
from mimic3d.networks.generator import View
from mimic3d.rendering.images import to_uint8
from mimic3d_platform.models.model_uris import load_generator
from mimic3d_platform.models.rendering import RenderOptions, latents_of

if TYPE_CHECKING:
    from trimesh import Trimesh


@dataclass(frozen=True)
class Generator:
    """A trained generator and its config.

    Attributes:
        network: the PyTorch module, in evaluation mode, on the GPU where there is one.
    """

    network: Network
    config: Config

    @classmethod
    def load(cls, uri: str | Path) -> Generator:
        """Loads a generator; nothing of the model is executed.

        Args:
            uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, which are downloaded once and kept in the
                folder `models` of `MIMIC3D_HOME`; `builtin:cars`; a folder of a generator or of a training
                checkpoint, local or in object storage.
        Raises:
            UserError: no such model, or a file is damaged.
        """
        return cls(*load_generator(str(uri)))

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that it renders: "2d", "3d" or both."""
        return self.network.branches

    def latents(self, seeds: Sequence[int], truncation: float = 1.0) -> Tensor:
        """(N, num_ws, w_dim) latents w of seeds, as `mimic3d render` takes them.

        Args:
            truncation: 1 for none, 0 for the average object.
        """
        return latents_of(self.network, self.config, RenderOptions(tuple(seeds), truncation=truncation))

    def camera(
        self,
        yaw: float = 0.0,
        pitch: float | None = None,
        radius: float | None = None,
        focal: float | None = None,
    ) -> Tensor:
        """(1, 25): a camera label that looks at the config's pivot.

        Args:
            yaw, pitch: radians; the pitch is the config's when None.
            radius: distance from the pivot in world units; the config's when None.
            focal: focal length in image widths; the config's when None.
        """
        return around_pivot(self.config.camera, yaw, pitch, radius, focal)

    @torch.no_grad()
    def view(self, w: Tensor, camera: Tensor, branch: str | None = None) -> View:
        """Renders latents: images (N, 3, R, R) in about [-1, 1], depth and opacity.

        Args:
            w: (N, num_ws, w_dim), of `latents` or `interpolate`.
            camera: (1, 25) or (N, 25).
            branch: "2d" or "3d"; the 3D branch when None, where there is one.
        Raises:
            ValueError: the generator has no such branch.
        """
        branch = branch or self.branches[-1]
        planes = self.network.planes(w, detail=branch == "3d")
        return self.network.view(planes, w, camera.to(w).expand(len(w), -1), branch)

    def draw(
        self,
        seeds: Sequence[int],
        yaw: float = 0.0,
        pitch: float | None = None,
        *,
        branch: str | None = None,
        truncation: float = 1.0,
    ) -> list[Image.Image]:
        """Renders an image of each seed, which a notebook shows; see `latents`, `camera` and `view`."""
        return to_images(self.view(self.latents(seeds, truncation), self.camera(yaw, pitch), branch).image)

    def interpolate(self, seeds: Sequence[int], frames: int, truncation: float = 1.0) -> Tensor:
        """(frames, num_ws, w_dim): a smooth closed path through the latents of seeds, for `view`."""
        return interpolate_latents(self.latents(seeds, truncation), frames)

    def mesh(self, seed: int, resolution: int = 128, *, truncation: float = 1.0) -> Trimesh:
        """The coloured surface of one object, as `mimic3d.export.mesh.save_mesh` writes it.

        Args:
            resolution: density samples along each side of the box.
        Raises:
            NoSurfaceError: the density nowhere crosses the surface's level.
        """
        w = self.latents([seed], truncation)
        return extract_mesh(self.network, w, branch=self.branches[-1], resolution=resolution)


def to_images(images: Tensor) -> list[Image.Image]:
    """Pillow images of (N, 3, R, R) in [-1, 1]."""
    return [Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()) for pixels in to_uint8(images)]
