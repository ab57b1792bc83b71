"""Meshes for calibrations: balls whose faces have random colours."""

import numpy as np
import trimesh

from mimic3d_platform.data.render.meshes import Mesh


def coloured_balls(count: int) -> list[Mesh]:
    """`count` balls, each in other colours."""
    meshes = []
    for seed in range(count):
        ball = trimesh.creation.icosphere(subdivisions=2, radius=0.45)
        faces = len(ball.faces)
        colours = np.random.default_rng(seed).uniform(0, 0.8, (faces, 3))
        nothing = np.zeros(faces, dtype=np.int8)
        arrays = (ball.vertices, ball.faces.astype(np.int32), colours, nothing, nothing.astype(np.int32))
        meshes.append(Mesh(f"ball-{seed}", "ball", "test", "CC0", "test", *arrays))
    return meshes
