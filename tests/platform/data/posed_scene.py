"""Images of a mesh from known cameras, in the forms of EG3D, NeRF, COLMAP and tables."""

import csv
import io
import json
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from mimic3d import cameras as geometry
from mimic3d_platform.data.render.meshes import Mesh
from mimic3d_platform.data.render.ray_caster import RayCaster

SIDE = 16


@dataclass(frozen=True)
class Scene:
    """Images (n, SIDE, SIDE, 3) and the labels (n, 25) float32 of the cameras that took them."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def file(self, index: int) -> bytes:
        return encoded(self.images[index])


def encoded(pixels: np.ndarray | Image.Image, form: str = "PNG") -> bytes:
    sink = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(sink, format=form)
    return sink.getvalue()


def cameras_around(count: int, focal: float = 1.2) -> torch.Tensor:
    """(count, 25) labels: different yaws and pitches, the principal point slightly off the centre."""
    yaw, pitch = torch.linspace(-2.0, 2.5, count), torch.linspace(-0.4, 0.9, count)
    labels = geometry.look_at(geometry.on_sphere(yaw, pitch, 1.7), focal=focal)
    labels[:, 18], labels[:, 21] = 0.53, 0.46
    return labels


def take_pictures(mesh: Mesh, labels: torch.Tensor, side: int = SIDE) -> np.ndarray:
    return RayCaster(mesh).render(mesh.colours, labels, side, 1).images


def posed_scene(mesh: Mesh, count: int = 6) -> Scene:
    labels = cameras_around(count)
    names = tuple(f"{index // 4:05d}/img{index:08d}.png" for index in range(count))
    return Scene(take_pictures(mesh, labels), labels.numpy(), names)


def dataset_json(names: Sequence[str], labels: Sequence[Sequence[float]]) -> str:
    pairs = [[name, [float(value) for value in label]] for name, label in zip(names, labels, strict=True)]
    return json.dumps({"labels": pairs})


def write_zip(path: Path, files: dict[str, bytes], packed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def eg3d_files(scene: Scene) -> dict[str, bytes]:
    files = {name: scene.file(index) for index, name in enumerate(scene.names)}
    return files | {"dataset.json": dataset_json(scene.names, scene.labels).encode()}


def nerf_files(scene: Scene, *, pixels: bool) -> dict[str, bytes]:
    """transforms.json with OpenGL axes; the lens in pixels, or as an angle with a centred principal point."""
    frames = []
    for name, label in zip(scene.names, scene.labels.astype(np.float64), strict=True):
        pose = label[:16].reshape(4, 4) @ np.diag([1, -1, -1, 1])
        shown = name if pixels else name.removesuffix(".png")
        frames.append({"file_path": f"./{shown}", "transform_matrix": pose.tolist()})
    fx, cx, fy, cy = (float(scene.labels[0, index]) * SIDE for index in (16, 18, 20, 21))
    lens: dict = {"camera_angle_x": 2 * float(np.arctan(0.5 / scene.labels[0, 16]))}
    if pixels:
        lens = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": SIDE, "h": SIDE}
    files = {name: scene.file(index) for index, name in enumerate(scene.names)}
    return files | {"transforms.json": json.dumps({**lens, "frames": frames}).encode()}


def colmap_files(scene: Scene, *, binary: bool) -> dict[str, bytes]:
    """images/ and sparse/0: world-to-camera quaternions, intrinsics in pixels, some 2D points to skip."""
    focal, cx, cy = (float(scene.labels[0, index]) * SIDE for index in (16, 18, 21))
    rows = []
    for number, (name, label) in enumerate(zip(scene.names, scene.labels.astype(np.float64), strict=True)):
        to_camera = np.linalg.inv(label[:16].reshape(4, 4))
        x, y, z, w = Rotation.from_matrix(to_camera[:3, :3]).as_quat()
        rows.append((number + 1, (w, x, y, z), tuple(to_camera[:3, 3]), name))
    files = {f"images/{name}": scene.file(index) for index, name in enumerate(scene.names)}
    if binary:
        lens = struct.pack("<QiiQQ4d", 1, 7, 1, SIDE, SIDE, focal, focal, cx, cy)
        poses = struct.pack("<Q", len(rows))
        for number, quaternion, translation, name in rows:
            poses += struct.pack("<i7di", number, *quaternion, *translation, 7) + name.encode() + b"\0"
            points = number % 3
            poses += struct.pack("<Q", points) + struct.pack("<ddq", 1.0, 2.0, -1) * points
        return files | {"sparse/0/cameras.bin": lens, "sparse/0/images.bin": poses}
    lines = ["# Image list with two lines of data per image:"]
    for number, quaternion, translation, name in rows:
        numbers = " ".join(repr(float(value)) for value in (*quaternion, *translation))
        lines += [f"{number} {numbers} 7 {name}", "1.0 2.0 -1" if number % 2 else ""]
    cameras = f"# Camera list\n7 SIMPLE_RADIAL {SIDE} {SIDE} {focal!r} {cx!r} {cy!r} 0\n"
    return files | {
        "sparse/0/cameras.txt": cameras.encode(),
        "sparse/0/images.txt": ("\n".join(lines) + "\n").encode(),
    }


def table_files(scene: Scene, *, form: str) -> dict[str, bytes]:
    """cameras.csv with one column or 25, or cameras.json; with identity, weight and two more columns."""
    files = {name: scene.file(index) for index, name in enumerate(scene.names)}
    rows = [
        {"file": name, "identity": f"thing {index % 2}", "weight": index + 0.5, "paint": "red", "year": 1960}
        for index, name in enumerate(scene.names)
    ]
    labels = scene.labels.astype(np.float64).tolist()
    if form == "json":
        content = [row | {"camera": label} for row, label in zip(rows, labels, strict=True)]
        return files | {"cameras.json": json.dumps(content).encode()}
    sink = io.StringIO(newline="")
    numbered = [f"camera_{number}" for number in range(25)]
    writer = csv.DictWriter(sink, [*rows[0], *(["camera"] if form == "csv" else numbered)])
    writer.writeheader()
    for row, label in zip(rows, labels, strict=True):
        wide = dict(zip(numbered, label, strict=True))
        writer.writerow(row | ({"camera": " ".join(map(repr, label))} if form == "csv" else wide))
    return files | {"cameras.csv": sink.getvalue().encode()}
