"""The state that a run begins with (`start`), of a training checkpoint or of a generator's folder."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mimic3d.checkpoints.file_names import GENERATOR_WEIGHTS, TRAINING_NETWORKS, TRAINING_STATE
from mimic3d.config import Config

NETWORKS = ("generator", "ema", "dual", "patch")
OPTIMIZERS = ("generator_optimizer", "discriminator_optimizer")


class InitialState(NamedTuple):
    """The networks in a folder that a run starts from."""

    networks: dict[str, dict[str, Tensor]]
    """The states of networks, by their names among `NETWORKS`."""
    moments: dict[str, dict[int, dict[str, Tensor]]]
    """Adam's state by parameter number, by the optimiser's name among `OPTIMIZERS`; empty for a generator."""
    augmentation_probability: float | None
    """The probability of ADA's transforms; None where there was none."""


def read_initial_state(folder: str | Path) -> InitialState:
    """Reads a folder without executing anything in it.

    A training checkpoint holds all networks. The generator of a generator's folder is also its average,
    unless the networks of a training lie beside it.

    Raises:
        ValueError: the folder is neither, or a file of it is damaged.
    """
    folder = Path(folder)
    if (folder / TRAINING_STATE).is_file():
        try:
            state = torch.load(folder / TRAINING_STATE, map_location="cpu", weights_only=True)
            return InitialState(
                {name: dict(state[name]) for name in NETWORKS},
                {name: dict(state[name]["state"]) for name in OPTIMIZERS},
                float(state["augmentation"]["p"]) if "augmentation" in state else None,
            )
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
            raise ValueError(f"{folder / TRAINING_STATE} is damaged: take an earlier checkpoint") from None
    if (folder / GENERATOR_WEIGHTS).is_file():
        weights = _read(folder / GENERATOR_WEIGHTS)
        networks = {"generator": weights, "ema": weights}
        if (folder / TRAINING_NETWORKS).is_file():
            trained: dict[str, dict[str, Tensor]] = {}
            for name, tensor in _read(folder / TRAINING_NETWORKS).items():
                network, _, key = name.partition(".")
                trained.setdefault(network, {})[key] = tensor
            networks |= {name: state for name, state in trained.items() if name in NETWORKS}
        return InitialState(networks, {}, None)
    raise ValueError(
        f"{folder} holds neither {TRAINING_STATE} nor {GENERATOR_WEIGHTS}: the start must be the folder of a "
        "training checkpoint or of a generator"
    )


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again") from None


def load_networks(
    states: Mapping[str, Mapping[str, Tensor]],
    config: Config,
    networks: Mapping[str, nn.Module],
    folder: str | Path,
) -> list[str]:
    """Gives `networks`, by their names among `NETWORKS`, the weights that `states` has for them.

    S3D, which stage 1 does not train, and 3D-aware blocks, if stage 1 will train them, may be missing and
    keep their initialisation; so does the patch discriminator where it is of another size.

    Args:
        folder: where the states come from, for the error's message.
    Returns:
        the names of the networks that were given weights.
    Raises:
        ValueError: the states do not fit the config: one line that says what differs.
    """
    loaded = []
    for name, network in networks.items():
        if name not in states:
            continue
        state = dict(states[name])
        own = network.state_dict()
        if name == "patch" and _shapes(state) != _shapes(own):
            continue
        if name in ("generator", "ema"):
            missing = own.keys() - state.keys()
            state |= {key: own[key] for key in missing if _may_be_missing(key, state, config)}
        differing = sorted(
            key for key in own.keys() | state.keys() if _shape(own.get(key)) != _shape(state.get(key))
        )
        if differing:
            raise ValueError(_mismatch(folder, name, differing[0], state, own, len(differing)))
        network.load_state_dict(state)
        loaded.append(name)
    return loaded


def load_moments(
    moments: Mapping[str, Mapping[int, dict[str, Tensor]]], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Gives optimisers, by their names among `OPTIMIZERS`, Adam's moments of parameters of the same shape.

    Rates and decays stay the config's.
    """
    for name, stored in moments.items():
        optimizer = optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        fitting = {
            index: state
            for index, state in stored.items()
            if index < len(parameters) and state["exp_avg"].shape == parameters[index].shape
        }
        optimizer.load_state_dict(optimizer.state_dict() | {"state": fitting})


def _may_be_missing(key: str, state: Mapping[str, Tensor], config: Config) -> bool:
    if ".block2." in key or ".block3." in key:
        return True
    without_aware3d = not any(".b3d" in name for name in state)
    return ".b3d" in key and without_aware3d and config.stage1_nimg > 0


def _mismatch(
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
