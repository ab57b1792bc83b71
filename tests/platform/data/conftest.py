"""Small real meshes in all formats, and small data sets whose images encode their row number."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from data_samples import MTL, OBJ, camera_of, picture, png

from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.format.manifest import COLUMNS, Manifest


@pytest.fixture
def mesh_folder(tmp_path: Path) -> Path:
    """car.obj with car.mtl (red body, window above, black below), deep/ball.glb (green), box.ply (blue)."""
    folder = tmp_path / "meshes"
    (folder / "deep").mkdir(parents=True)
    (folder / "car.obj").write_text(OBJ, encoding="utf-8")
    (folder / "car.mtl").write_text(MTL, encoding="utf-8")
    ball = trimesh.creation.icosphere(subdivisions=2, radius=3.0)
    green = trimesh.visual.material.PBRMaterial(name="paint", baseColorFactor=[20, 200, 30, 255])
    ball.visual = trimesh.visual.TextureVisuals(material=green)
    ball.apply_translation([5, 6, 7])
    ball.export(folder / "deep" / "ball.glb")
    box = trimesh.creation.box((2.0, 1.0, 1.0))
    box.visual.vertex_colors = [30, 60, 220, 255]
    box.export(folder / "box.ply")
    return folder


WriteSet = Callable[..., Manifest]


@pytest.fixture
def write_set() -> WriteSet:
    """`write_set(uri, rows, side=2, …)`: a data set whose images are `picture(row, side)`."""

    def write(
        uri: object, rows: int, side: int = 2, columns: tuple[str, ...] = COLUMNS, **options
    ) -> Manifest:
        writer = DatasetWriter(str(uri), side, {"tool": "test"}, columns=columns, **options)
        for row in range(rows):
            values = {
                "image": png(picture(row, side)),
                "camera": camera_of(row).numpy(),
                "identity": f"thing-{row // 3}",
                "depth": np.full((side, side), row, "<f4").tobytes(),
                "mask": png(np.zeros((side, side), np.uint8)),
            }
            writer.write({name: values[name] for name in columns})
        return writer.close()

    return write
