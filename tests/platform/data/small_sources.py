"""Sources of a few small images in the forms that `mimic3d data ingest` takes, and their ingestion."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from posed_scene import cameras_around, dataset_json, encoded

from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset

LABELS = cameras_around(4).tolist()
Files = dict[str, bytes]


def picture(number: int) -> np.ndarray:
    return np.full((16, 16, 3), 20 * number, np.uint8)


def png(number: int = 0) -> bytes:
    return encoded(picture(number))


def rows(folder: Path) -> dict[str, dict]:
    parts = sorted(folder.glob("part-*.parquet"))
    table = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert len({row["name"] for row in table}) == len(table), "two rows of one name"
    return {row["name"]: row for row in table}


def ingest(source: object, dest: Path, **options) -> dict[str, dict]:
    ingest_dataset(str(source), str(dest), here=True, **options)
    return rows(dest)


def eg3d(names: list[str], listed: list[str] | None = None, mark: bytes = b"") -> Files:
    files = {name: png(number) for number, name in enumerate(names)}
    return files | {"dataset.json": mark + dataset_json(listed or names, LABELS[: len(names)]).encode()}


def frames(names: list[str]) -> list[dict]:
    poses = [np.array(label[:16]).reshape(4, 4) @ np.diag([1, -1, -1, 1]) for label in LABELS]
    return [{"file_path": name, "transform_matrix": poses[i].tolist()} for i, name in enumerate(names)]


def nerf(names: list[str], **keys) -> bytes:
    return json.dumps({"camera_angle_x": 0.8, **keys, "frames": frames(names)}).encode()


POSE = "1 0 0 0 0 0 2"


def colmap(
    camera: str = "1 PINHOLE 16 16 20 20 8 8",
    where: str = "images/",
    points: str = "\n",
    model: str = "sparse/0",
    count: int = 3,
) -> Files:
    lines = "".join(f"{i + 1} {POSE} 1 {i}.png\n{points}" for i in range(count))
    return {f"{where}{i}.png": png(i) for i in range(3)} | {
        f"{model}/cameras.txt": f"{camera}\n".encode(),
        f"{model}/images.txt": f"# Image list\n{lines}".encode(),
    }


def rows_are_pictures(found: dict[str, dict]) -> bool:
    return len(found) == 3 and all(row["image"] == png(int(name[0])) for name, row in found.items())
