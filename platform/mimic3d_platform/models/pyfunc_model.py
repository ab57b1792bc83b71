"""Renders the rows of a table: what `mlflow.pyfunc.load_model` loads of a registered generator.

Every registered version has a copy of this file, and of the parts of `mimic3d` that it imports, which it uses
where mimic3d is not installed. It imports nothing else of the platform.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

if importlib.util.find_spec("mimic3d") is None:
    sys.path.append(str(Path(__file__).with_name("mimic3d_sources.zip")))

from mimic3d.cameras import LABEL_SIZE, pixel_grid
from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d.config import Config
from mimic3d.export.latents import latents_of_seeds
from mimic3d.export.orbits import around_pivot, front
from mimic3d.networks.backbone import TriPlanes
from mimic3d.networks.generator import DEFAULT_MAX_POINTS, Generator
from mimic3d.rendering.images import to_uint8

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("seed", "latent", "yaw", "pitch", "radius", "focal", "label")
MAX_SIZE = 4096
_CAMERA = ("yaw", "pitch", "radius", "focal")
_IMAGE_KINDS = ("png", "array")

Param = str | int | float
Cell = float | list[float] | np.ndarray


class TableRenderer:
    """Renders one image and its depth for each row.

    Args:
        generator: in evaluation mode; it is moved to the GPU where there is one.
    """

    def __init__(self, generator: Generator, config: Config) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.generator, self.config = generator.to(self.device), config

    def predict(self, table: DataFrame, params: Mapping[str, Param] | None = None) -> DataFrame:
        """Renders the rows of `table`.

        Args:
            table: `seed`, or `latent` with z_dim numbers; a camera as `yaw` and `pitch` in radians, `radius`
                in world units and `focal` in image widths around the config's pivot, or as `label` with 25
                numbers. Every column may be missing: a row is seed 0 from the front by default.
            params: `branch` (2d or 3d); `truncation` (1 for none); `size` in pixels, 0 for the model's own,
                at which the 3D branch is rendered and to which the 2D branch is resized; `image`: png for the
                bytes of a file, array for (size, size, 3) numbers from 0 to 255.
        Returns:
            `image`, and `depth`: (r, r) world units along the rays, r the resolution of the branch's volume
            rendering.
        Raises:
            MlflowException: names the row, or the parameter, and what is wrong with it.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self._predict(table, params or {})
        except ValueError as error:  # Of others, MLflow's server answers a traceback.
            raise MlflowException.invalid_parameter_value(str(error)) from error

    @torch.no_grad()
    def _predict(self, table: DataFrame, params: Mapping[str, Param]) -> DataFrame:
        import pandas as pd

        if not isinstance(table, pd.DataFrame):
            raise ValueError(f"give a table with some of the columns {', '.join(COLUMNS)}")
        unknown = sorted(str(column) for column in table.columns if column not in COLUMNS)
        if unknown:
            raise ValueError(f"column {unknown[0]!r} is not one of {', '.join(COLUMNS)}")
        branch, truncation, size, kind = self._params(params)
        rows = []
        for number, values in enumerate(table.to_dict(orient="records")):
            row = {str(name): value for name, value in values.items() if _is_given(value)}
            try:
                rows.append(self._render(row, branch, truncation, size, kind))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
        return pd.DataFrame(rows, columns=["image", "depth"])

    def _params(self, params: Mapping[str, Param]) -> tuple[str, float, int, str]:
        resolution = self.config.model.image_resolution
        branch = str(params.get("branch") or self.generator.branches[-1])
        self.generator.require_branch(branch)
        truncation, size = float(params.get("truncation", 1.0)), int(params.get("size") or resolution)
        if not np.isfinite(truncation):
            raise ValueError(f"truncation is {truncation}: give a number, 1 for none")
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"size is {size}: give pixels from 1 to {MAX_SIZE}, or 0 for the model's own")
        kind = str(params.get("image") or "png")
        if kind not in _IMAGE_KINDS:
            raise ValueError(f"image is {kind!r}: give {' or '.join(_IMAGE_KINDS)}")
        return branch, truncation, size, kind

    def _render(
        self, row: Mapping[str, Cell], branch: str, truncation: float, size: int, kind: str
    ) -> dict[str, bytes | list[list[list[int]]] | list[list[float]]]:
        z, camera = self._latent(row).to(self.device), self._camera(row).to(self.device)
        w = self.generator.mapping(z, front(self.config.camera).to(self.device), truncation)
        planes = self.generator.planes(w, detail=branch == "3d")
        resolution = self.config.model.image_resolution
        if branch == "3d" and size != resolution:
            image, depth = self._render_3d(planes, camera, size)
        else:
            view = self.generator.view(planes, w, camera, branch)
            image, depth = view.image, view.depth
            if size != resolution:
                image = F.interpolate(image, (size, size), mode="bilinear", antialias=True)
        pixels = to_uint8(image)[0].permute(1, 2, 0).cpu().numpy()
        return {"image": _png(pixels) if kind == "png" else pixels.tolist(), "depth": depth[0, 0].tolist()}

    def _render_3d(self, planes: TriPlanes, camera: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The 3D branch at (size, size): image (1, 3, size, size), depth (1, 1, size, size)."""
        G = self.generator
        settings = G.rendering
        intervals = G.depth_intervals(planes, camera, DEFAULT_MAX_POINTS) if settings.guided_samples else None
        samples = max(settings.coarse_samples, settings.importance_samples, settings.guided_samples)
        parts = [
            G.branch_3d(planes, camera, uv, intervals=intervals)
            for uv in pixel_grid(size, device=camera.device).split(max(1, DEFAULT_MAX_POINTS // samples))
        ]
        outputs = (
            torch.cat([part.features for part in parts], 1),
            torch.cat([part.depth for part in parts], 1),
        )
        image, depth = (values.transpose(1, 2).unflatten(-1, (size, size)) for values in outputs)
        return image, depth

    def _latent(self, row: Mapping[str, Cell]) -> Tensor:
        """(1, z_dim)."""
        if "latent" not in row:
            seed = float(np.asarray(row.get("seed", 0)))
            if seed < 0 or seed != int(seed):
                raise ValueError(f"seed is {seed:g}: give a whole number from 0")
            return latents_of_seeds(self.config.model, [int(seed)])
        if "seed" in row:
            raise ValueError("it has a seed and a latent: give one of them")
        return _numbers(row["latent"], "latent", self.config.model.z_dim)

    def _camera(self, row: Mapping[str, Cell]) -> Tensor:
        """(1, 25)."""
        if "label" in row:
            given = [name for name in _CAMERA if name in row]
            if given:
                raise ValueError(
                    f"it has a label and {given[0]}: a label is a whole camera, give one of them"
                )
            return _numbers(row["label"], "label", LABEL_SIZE)
        camera = self.config.camera
        values = {"yaw": 0.0, "pitch": camera.pitch, "radius": camera.radius, "focal": camera.focal}
        values |= {name: float(np.asarray(row[name])) for name in _CAMERA if name in row}
        for name, value in values.items():
            if not np.isfinite(value) or (name in ("radius", "focal") and value <= 0):
                raise ValueError(f"{name} is {value:g}: give a {'positive ' * (name in _CAMERA[2:])}number")
        if abs(values["pitch"]) >= np.pi / 2:
            raise ValueError(f"pitch is {values['pitch']:g}: give radians between -π/2 and π/2")
        return around_pivot(camera, **values)


def _load_pyfunc(path: str) -> TableRenderer:
    """Loads a version's folder; MLflow calls this by name. Weights are safetensors, config is YAML."""
    return TableRenderer(*load_generator(path))


def _is_given(value: Hashable) -> bool:
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _numbers(values: Cell, name: str, count: int) -> Tensor:
    """(1, count) float32 of a cell."""
    try:
        numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is not a list of numbers") from None
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{name} has {len(numbers)} numbers: give {count} finite ones")
    return torch.from_numpy(numbers.astype(np.float32))[None]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()
