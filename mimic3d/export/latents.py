"""The latents of seeds and of files, and smooth interpolation between latents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mimic3d.config import ModelConfig
from mimic3d.networks.generator import Generator
from mimic3d.randomness import counter_generator

FORMATS = (".npy", ".safetensors")
MAX_LATENTS = 10_000


def parse_seeds(text: str) -> tuple[int, ...]:
    """The numbers of "0-5,9".

    Raises:
        ValueError: the text is not such a list, or has more than `MAX_LATENTS` numbers.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,15})\s*(?:-\s*(\d{1,15})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first:
            raise ValueError(f"seeds are {text!r}: give numbers and ranges, such as 0-5,9")
        if len(seeds) + last - first >= MAX_LATENTS:
            raise ValueError(f"seeds are {text!r}: that is more than {MAX_LATENTS}")
        seeds += range(first, last + 1)
    return tuple(seeds)


def latents_of_seeds(model: ModelConfig, seeds: Sequence[int]) -> Tensor:
    """(N, z_dim), standard normal; the latent of a seed does not depend on the other seeds."""
    latents = [torch.randn(model.z_dim, generator=counter_generator(0, "identity", seed)) for seed in seeds]
    return torch.stack(latents)


def read_latents(path: str | Path, generator: Generator) -> Tensor:
    """Reads latents: z (N, z_dim), or w (N, num_ws, w_dim). Nothing in the file is executed.

    Args:
        path: a `.npy` file of either shape, or a `.safetensors` file with one tensor named `z` or `w`; a w of
            shape (N, w_dim) is repeated for all layers.
    Raises:
        ValueError: no such file, another format, or another shape than this generator's latents.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: latents are read from {' or '.join(FORMATS)} files")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    values, name = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)
    model, num_ws = generator.config, generator.backbone.mapping.num_ws
    if name == "w" and values.ndim == 2:
        values = np.repeat(values[:, None], num_ws, axis=1)
    shapes = {"z": (model.z_dim,), "w": (num_ws, model.w_dim)}
    name = name or ("z" if values.ndim == 2 else "w")
    if not 1 <= len(values) <= MAX_LATENTS or values.shape[1:] != shapes[name]:
        raise ValueError(
            f"{path} holds {name} of shape {values.shape}, but this generator's is (N, *{shapes[name]}), "
            f"N from 1 to {MAX_LATENTS}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{path} contains numbers that are not finite")
    return torch.from_numpy(values.astype(np.float32))


def _read_npy(path: Path) -> tuple[np.ndarray, str]:
    try:
        # Memory-mapped, so that a file that declares more than it contains allocates nothing.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError) as error:
        raise ValueError(f"{path} is not an array that can be read ({_line(error)})") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim not in (2, 3):
        raise ValueError(f"{path} is not an array of floating-point numbers with two or three dimensions")
    return values, ""


def _read_safetensors(path: Path) -> tuple[np.ndarray, str]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) != 1 or names[0] not in ("z", "w"):
                raise ValueError(f"{path} must hold one tensor, z or w")
            values = file.get_tensor(names[0])
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file ({_line(error)})") from None
    if not values.is_floating_point() or values.dim() not in (2, 3):
        raise ValueError(
            f"{path}: {names[0]} is not a tensor of floating-point numbers with two or three dimensions"
        )
    return values.float().numpy(), names[0]


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def interpolate(w: Tensor, frames: int) -> Tensor:
    """A smooth closed path through latents in turn, back to the first (Catmull-Rom spline).

    Args:
        w: (N, num_ws, w_dim).
    Returns:
        (frames, num_ws, w_dim); frame k * frames / N is latent k.
    """
    position = torch.arange(frames, device=w.device, dtype=torch.float64) * len(w) / frames
    index = position.floor().long()
    t = (position - index).to(w)[:, None, None]
    before, start, end, after = (w[(index + step) % len(w)] for step in (-1, 0, 1, 2))
    return start + t / 2 * (
        (end - before)
        + t * ((2 * before - 5 * start + 4 * end - after) + t * (3 * (start - end) + after - before))
    )
