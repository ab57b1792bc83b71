"""Converts EG3D's and Mimic3D's released checkpoints to this project's format, without running them.

The averaged generator (G_ema) becomes a generator's folder. The networks that only a training needs, the
generator that is not averaged and the discriminators, are written beside it if the pickle has them; `start`
reads them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mimic3d.checkpoints.file_names import TRAINING_NETWORKS
from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.checkpoints.pickle_parser import Module, quoted, read_network_pickle
from mimic3d.checkpoints.released_config import Shapes, label_scale, released_config
from mimic3d.config import Config
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator
from mimic3d.networks.generator import Generator

NETWORK = "G_ema"
# The other networks of a pickle -> their names among `mimic3d.training.initial_weights.NETWORKS`.
_OTHERS = {"G": "generator", "D": "dual", "D_patch": "patch"}
# The released networks nest their modules less deeply.
_MAX_DEPTH = 16
# Several times the size of the largest released file; files are read into memory.
_MAX_BYTES = 4 * 2**30
_FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def import_released(file: str | Path, destination: str | Path, *, generator_only: bool = False) -> Config:
    """Writes the networks of a network pickle as a generator's folder, and returns its config.

    Nothing in the file is executed. The folder appears complete or not at all.

    Args:
        file: a network pickle of EG3D or Mimic3D.
        destination: a folder that is empty or does not exist yet.
        generator_only: imports G_ema only, and does not read the networks that only a training needs.
    Raises:
        ValueError: the file is not such a pickle, or is damaged, or holds a network that is not supported;
            the destination is not empty or cannot be written.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists and is not an empty folder: name another")
    generator, config, others = _networks(file, generator_only)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mimic3d-import-", dir=destination.parent) as partial:
            folder = save_generator(Path(partial) / "generator", generator, config)
            if others:
                save_file(others, folder / TRAINING_NETWORKS)
            folder.rename(destination)
    except OSError as error:
        raise ValueError(f"cannot write {destination} ({error.strerror or error})") from None
    return config


def _networks(file: str | Path, generator_only: bool) -> tuple[Generator, Config, dict[str, Tensor]]:
    """The averaged generator, its config, and the other networks' tensors, named NETWORK.TENSOR."""
    try:
        data = _read(Path(file))
        root = read_network_pickle(data)
        network = root.get(NETWORK) if isinstance(root, dict) else None
        if not isinstance(network, Module):
            raise ValueError(f"it holds no network {NETWORK}: it is not an EG3D or Mimic3D checkpoint")
        found = {NETWORK: dict(_tensors(network))}
        for name in () if generator_only else _OTHERS:
            if root.get(name) is not None:
                if not isinstance(root[name], Module):
                    raise ValueError(f"its {name} is not a network")
                with _errors_name(name):
                    found[name] = dict(_tensors(root[name]))
        _require_own_memory(found, len(data))
        shapes = {name: _shapes(tensors) for name, tensors in found.items()}
        config = released_config(shapes[NETWORK], network.state, shapes.get("D"))
        scale = label_scale(network.state)
        generator = _generator(config, found.pop(NETWORK), scale)
        others: dict[str, Tensor] = {}
        for name, tensors in found.items():
            with _errors_name(name):
                state = _other(name, config, tensors, scale)
            others |= {f"{_OTHERS[name]}.{key}": tensor for key, tensor in state.items()}
        return generator, config, others
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _other(name: str, config: Config, tensors: dict[str, np.ndarray], scale: float) -> dict[str, Tensor]:
    """The `state_dict` of a network that only a training needs, from its released tensors."""
    if name == "G":
        return {
            key: value.contiguous() for key, value in _generator(config, tensors, scale).state_dict().items()
        }
    model = config.model
    widths = (model.discriminator_channel_base, model.discriminator_channel_max)
    with torch.device("meta"):
        network: nn.Module = (
            DualDiscriminator(model.image_resolution, *widths)
            if name == "D"
            else PatchDiscriminator(config.patch_resolution, *widths)
        )
    return _state("discriminator", _wanted(network), tensors)


@contextlib.contextmanager
def _errors_name(network: str) -> Iterator[None]:
    """Names a network that only a training needs in the errors of the block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"in {network}, {error} (to import the generator alone: --generator-only)") from None


def _require_own_memory(networks: dict[str, dict[str, np.ndarray]], size: int) -> None:
    """Raises ValueError if tensors share memory, which would expand a small file to large tensors."""
    held = sum(array.nbytes for tensors in networks.values() for array in tensors.values())
    if held > size:
        raise ValueError(f"its tensors share memory: they have {held} bytes in a file of {size}")


def _read(file: Path) -> bytes:
    if file.is_dir():
        raise ValueError("it is a folder, not a network pickle (.pkl)")
    if not file.is_file():
        raise ValueError("no such file")
    try:
        size = file.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"it has {size} bytes, more than any network pickle ({_MAX_BYTES} at most)")
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from None
    if not data:
        raise ValueError("it is empty")
    if data.startswith(b"PK\x03\x04"):
        raise ValueError("it is a zip file, as torch.save writes, not a network pickle (.pkl)")
    return data


def _tensors(network: Module) -> Iterator[tuple[str, np.ndarray]]:
    """All parameters and buffers by their full names; each module is visited once."""
    seen: set[int] = set()
    waiting = [("", network)]
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen or prefix.count(".") > _MAX_DEPTH:
            raise ValueError(
                f"the network is not a tree: {quoted(prefix)} occurs twice or is nested too deeply"
            )
        seen.add(id(module))
        for name, array in (_entries(module, "_parameters") | _entries(module, "_buffers")).items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{quoted(prefix + name)} is not a tensor")
            yield prefix + name, array
        for name, part in _entries(module, "_modules").items():
            if not isinstance(part, Module):
                raise ValueError(f"{quoted(prefix + name)} is not a module")
            waiting.append((f"{prefix}{name}.", part))


def _entries(module: Module, kind: str) -> dict[str, Any]:
    entries = module.state.get(kind, {})
    if not isinstance(entries, dict):
        raise ValueError(f"the {kind} of a {quoted(module.class_name)} are not a dictionary")
    return {str(name): entry for name, entry in entries.items() if entry is not None}


def _generator(config: Config, tensors: dict[str, np.ndarray], label_scale: float) -> Generator:
    """A generator with the released tensors, whose names and shapes must be its own."""
    with torch.device("meta"):  # Shapes only: nothing is allocated before the file is known to fit.
        generator = Generator(config.model, config.rendering)
    wanted = _wanted(generator)
    tensors = dict(tensors)
    for name in wanted.keys() | tensors.keys():
        if _is_unused(name):
            # S2D has no noise, but some releases have its buffers.
            tensors.setdefault(name, np.zeros(wanted.get(name, ()), np.float32))
            wanted.setdefault(name, tensors[name].shape)
    state = _state(f"{config.model.architecture} generator", wanted, tensors)
    state["backbone.mapping.embed.weight"] *= label_scale
    own = generator.state_dict().keys()
    generator.load_state_dict({name: state[name] for name in own}, assign=True)
    return generator.eval().requires_grad_(False)


def _wanted(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _shapes(tensors: dict[str, np.ndarray]) -> Shapes:
    return {name: array.shape for name, array in tensors.items()}


def _state(
    kind: str, wanted: dict[str, tuple[int, ...]], tensors: dict[str, np.ndarray]
) -> dict[str, Tensor]:
    """The released tensors as a `state_dict`; names and shapes must be the wanted ones."""
    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith("resample_filter")]:
        taps = tensors.pop(name)
        if taps.shape != _FIR.shape or not np.allclose(taps, _FIR, rtol=0, atol=1e-6):
            raise ValueError(f"{quoted(name)} is not the filter [1, 3, 3, 1], the only one supported")
    missing, surplus = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    for names, verb in ((missing, "lacks"), (surplus, "has the surplus tensor")):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"its {kind} {verb} {quoted(names[0])}{others}")
    return {name: _tensor(name, array, wanted[name]) for name, array in tensors.items()}


def _is_unused(name: str) -> bool:
    return name.startswith("superresolution.") and name.endswith((".noise_const", ".noise_strength"))


def _tensor(name: str, array: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    found = array.shape
    while len(found) > len(shape) and found[0] == 1:  # b4.const is (C, 4, 4) or (1, C, 4, 4).
        found = found[1:]
    if found != shape:
        raise ValueError(f"the tensor {quoted(name)} has the shape {array.shape}, but must have {shape}")
    with np.errstate(over="ignore"):
        values = array.astype(np.float32).reshape(shape)
    if array.dtype.kind != "f" or not np.isfinite(values).all():
        raise ValueError(f"the tensor {quoted(name)} must hold finite floating-point numbers")
    return torch.from_numpy(values)
