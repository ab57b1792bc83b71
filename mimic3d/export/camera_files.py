"""Camera paths in files: camera labels, or yaw, pitch and radius around the object."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimic3d.cameras import LABEL_SIZE, look_at, on_sphere, split_label
from mimic3d.config import CameraConfig

FORMATS = (".json", ".csv")
ORBIT = ("yaw", "pitch", "radius", "focal")
MAX_CAMERAS = 100_000
_MAX_BYTES = 2**26


def read_cameras(path: str | Path, settings: CameraConfig) -> Tensor:
    """(T, 25) labels of a camera path.

    A `.json` file holds one of:
    - a list of 25-number labels, or `{"labels": …}` with such a list or with EG3D's, of names and labels;
    - an orbit, `{"yaw": [0, 1.5, 3], "pitch": 0.2, "frames": 48}`: yaw and pitch (radians), radius and focal
      are numbers or lists, and default to `settings`. With `frames`, the lists are evenly spaced key frames,
      interpolated linearly.

    A `.csv` file holds 25 columns without a heading, or columns under a heading of some of yaw, pitch, radius
    and focal.

    Raises:
        ValueError: one line that says what is wrong, and where.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: camera paths are read from {' or '.join(FORMATS)} files")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES // 2**20} MiB")
        text = path.read_text(encoding="utf-8-sig")
        return _from_json(text, settings) if path.suffix == ".json" else _from_csv(text, settings)
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: it is not text") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _from_json(text: str, settings: CameraConfig) -> Tensor:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON of a camera path") from None
    if isinstance(content, dict) and "labels" in content:
        content = content["labels"]
        if isinstance(content, list) and all(_is_named(entry) for entry in content):
            content = [label for _, label in content]
    if isinstance(content, list):
        return _labels(content)
    if not isinstance(content, dict):
        raise ValueError("it contains neither labels nor an orbit")
    return _orbit(content, settings)


def _is_named(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def _from_csv(text: str, settings: CameraConfig) -> Tensor:
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if any(row)]
    except csv.Error as error:
        raise ValueError(f"it is not CSV ({error})") from None
    if rows and set(rows[0]) <= set(ORBIT):
        heading, *rows = rows
        for number, row in enumerate(rows):
            if len(row) != len(heading):
                raise ValueError(f"camera {number} has {len(row)} values, the heading {len(heading)}")
        columns = zip(*rows, strict=True) if rows else ([] for _ in heading)
        return _orbit({name: list(column) for name, column in zip(heading, columns, strict=True)}, settings)
    return _labels(rows)


def _labels(rows: list[Any]) -> Tensor:
    _require_count(len(rows))
    labels = []
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != LABEL_SIZE:
            size = f"has {len(row)} numbers" if isinstance(row, list) else "is not a list"
            raise ValueError(f"camera {number} {size}; a label has {LABEL_SIZE} numbers")
        labels.append([_number(value, f"camera {number}") for value in row])
    cameras = torch.tensor(labels, dtype=torch.float64)
    pose, intrinsic = split_label(cameras)
    product = pose[:, :3, :3] @ pose[:, :3, :3].transpose(1, 2)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    is_pose = (product - torch.eye(3, dtype=torch.float64)).abs().amax(dim=(1, 2)) < 1e-2
    is_pose &= (pose[:, 3] - last).abs().amax(dim=1) < 1e-4
    has_focal = (intrinsic[:, 0, 0] > 0) & (intrinsic[:, 1, 1] > 0)
    checks = (
        (is_pose, "valid pose (a rotation, a position, then 0 0 0 1)"),
        (has_focal, "positive focal length"),
    )
    for holds, what in checks:
        if not holds.all():
            raise ValueError(f"camera {int((~holds).nonzero()[0])} has no {what}")
    return cameras.float()


def _orbit(content: Mapping[str, Any], settings: CameraConfig) -> Tensor:
    unknown = [key for key in content if key not in (*ORBIT, "frames")]
    if unknown:
        raise ValueError(f"unknown key {unknown[0][:40]!r}; known: {', '.join((*ORBIT, 'frames', 'labels'))}")
    if "yaw" not in content:
        raise ValueError("an orbit needs the key yaw")
    columns = {name: content.get(name, getattr(settings, name, None)) for name in ORBIT}
    values = {
        name: [_number(v, name) for v in (column if isinstance(column, list) else [column])]
        for name, column in columns.items()
    }
    frames = content.get("frames", max(map(len, values.values())))
    if type(frames) is not int:
        raise ValueError(f"frames is {str(frames)[:40]!r}, but must be a whole number")
    _require_count(frames)
    path = {}
    for name, column in values.items():
        if not column or ("frames" not in content and len(column) not in (1, frames)):
            raise ValueError(f"{name} has {len(column)} values, but the path has {frames} cameras")
        path[name] = _interpolated(torch.tensor(column, dtype=torch.float64), frames)
    if (path["radius"] <= 0).any() or (path["focal"] <= 0).any():
        raise ValueError("radius and focal must be more than 0")
    if (path["pitch"].abs() > math.radians(89.9)).any():
        raise ValueError("pitch must be between -1.57 and 1.57, a right angle")
    pivot = torch.tensor(settings.pivot, dtype=torch.float64)
    cameras = look_at(on_sphere(path["yaw"], path["pitch"], path["radius"], pivot), pivot)
    cameras[:, 16] = cameras[:, 20] = path["focal"].float()
    return cameras


def _interpolated(keys: Tensor, count: int) -> Tensor:
    """`count` values interpolated linearly between evenly spaced keys, both ends included."""
    if len(keys) == 1 or count == 1:
        return keys[:1].expand(count)
    position = torch.linspace(0, len(keys) - 1, count, dtype=torch.float64)
    index = position.floor().long().clamp(max=len(keys) - 2)
    return keys[index].lerp(keys[index + 1], position - index)


def _number(value: Any, where: str) -> float:
    try:
        number = float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {str(value)[:40]!r} is not a number")
    return number


def _require_count(count: int) -> None:
    if not 1 <= count <= MAX_CAMERAS:
        raise ValueError(f"it has {count} cameras, but a path has 1 to {MAX_CAMERAS}")
