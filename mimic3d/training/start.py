"""The weights that a run begins with, from a training checkpoint or from a generator's folder."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mimic3d.checkpoints.file_names import GENERATOR_WEIGHTS, TRAINING_NETWORKS, TRAINING_STATE
from mimic3d.config import Config

PARTS = ("generator", "ema", "dual", "patch")
OPTIMIZERS = ("generator_optimizer", "discriminator_optimizer")


def read_start(folder: str | Path) -> dict[str, dict[str, Tensor]]:
    """The states of networks that a folder holds, by their names among `PARTS`. Nothing in it is executed.

    A training checkpoint holds all of them; of a generator's folder, the one generator is also the average,
    unless others lie beside it.

    Raises:
        ValueError: the folder is neither, or a file of it is damaged.
    """
    folder = Path(folder)
    if (folder / TRAINING_STATE).is_file():
        try:
            state = torch.load(folder / TRAINING_STATE, map_location="cpu", weights_only=True)
            return {name: dict(state[name]) for name in PARTS}
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
            raise ValueError(f"{folder / TRAINING_STATE} is damaged: take an earlier checkpoint") from None
    if (folder / GENERATOR_WEIGHTS).is_file():
        weights = _read(folder / GENERATOR_WEIGHTS)
        states = {"generator": weights, "ema": weights}
        if (folder / TRAINING_NETWORKS).is_file():
            trained: dict[str, dict[str, Tensor]] = {}
            for name, tensor in _read(folder / TRAINING_NETWORKS).items():
                part, _, key = name.partition(".")
                trained.setdefault(part, {})[key] = tensor
            states |= {part: state for part, state in trained.items() if part in PARTS}
        return states
    raise ValueError(
        f"{folder} holds neither {TRAINING_STATE} nor {GENERATOR_WEIGHTS}: the start must be the folder of a "
        "training checkpoint or of a generator"
    )


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again") from None


def load_start(folder: str | Path, config: Config, networks: Mapping[str, nn.Module]) -> list[str]:
    """Gives `networks`, by their names among `PARTS`, the weights that the start has for them.

    S3D, which stage 1 does not train, and 3D-aware blocks, if stage 1 will train them, may be lacking and
    keep their initialisation; so does the patch discriminator where the start's is of another size.

    Returns:
        the names of the networks that were given weights.
    Raises:
        ValueError: the start is no start, or does not fit the config: one line that says what differs.
    """
    states = read_start(folder)
    taken = []
    for name, network in networks.items():
        if name not in states:
            continue
        state = dict(states[name])
        own = network.state_dict()
        if name == "patch" and _shapes(state) != _shapes(own):
            continue
        if name in ("generator", "ema"):
            lacking = own.keys() - state.keys()
            state |= {key: own[key] for key in lacking if _may_lack(key, state, config)}
        differing = sorted(
            key for key in own.keys() | state.keys() if _shape(own.get(key)) != _shape(state.get(key))
        )
        if differing:
            raise ValueError(_misfit(folder, name, differing[0], state, own, len(differing)))
        network.load_state_dict(state)
        taken.append(name)
    return taken


def read_augmentation_probability(folder: str | Path) -> float | None:
    """The probability of ADA's transforms at which a training checkpoint was; None where it had none."""
    if not (Path(folder) / TRAINING_STATE).is_file():
        return None
    state = torch.load(Path(folder) / TRAINING_STATE, map_location="cpu", weights_only=True)
    return float(state["augmentation"]["p"]) if "augmentation" in state else None


def load_moments(folder: str | Path, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Gives optimisers, by their names among `OPTIMIZERS`, Adam's moments of a training checkpoint.

    Rates and decays stay the config's. Begun anew, the moments' first steps throw a trained network back
    where the rates are high. Parameters whose shape differs, and a start that is no training checkpoint, have
    none to give.
    """
    if not (Path(folder) / TRAINING_STATE).is_file():
        return
    stored = torch.load(Path(folder) / TRAINING_STATE, map_location="cpu", weights_only=True)
    for name, optimizer in optimizers.items():
        own = optimizer.state_dict()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments = {
            index: state
            for index, state in stored[name]["state"].items()
            if index < len(parameters) and state["exp_avg"].shape == parameters[index].shape
        }
        optimizer.load_state_dict(own | {"state": moments})


def _may_lack(key: str, state: Mapping[str, Tensor], config: Config) -> bool:
    if ".block2." in key or ".block3." in key:
        return True
    without_aware3d = not any(".b3d" in name for name in state)
    return ".b3d" in key and without_aware3d and config.stage1_nimg > 0


def _misfit(
    folder: str | Path, name: str, key: str, state: Mapping[str, Any], own: Mapping[str, Any], count: int
) -> str:
    if ".b3d" in key and key not in state:
        return (
            f"the start {folder} has no 3D-aware blocks, which stage 2 builds on: train stage 1 first "
            "(schedule.stage1_kimg above 0)"
        )
    found = "has none" if key not in state else f"has {list(state[key].shape)}"
    wanted = "no such tensor" if key not in own else f"{list(own[key].shape)}"
    return (
        f"the start {folder} does not fit the config: {name}.{key} must be {wanted} and it {found} "
        f"({count} tensors differ); change model.* to the start's"
    )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...] | None]:
    return {key: _shape(value) for key, value in state.items()}


def _shape(value: Tensor | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value.shape)
