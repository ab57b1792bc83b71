"""A generator as a folder: `generator.safetensors`, its weights, and `config.yaml`, the run's config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mimic3d.config import Config, from_dict, to_dict
from mimic3d.networks.generator import Generator, build_generator

WEIGHTS = "generator.safetensors"
CONFIG = "config.yaml"


def config_to_yaml(config: Config) -> str:
    """The whole config as YAML, in the order of its definition."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def config_from_yaml(text: str, where: str) -> Config:
    """Reads what `config_to_yaml` wrote, or a part of it; `where` names its source in errors."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{where} is not YAML ({reason}): correct or replace it") from None
    try:
        return from_dict(values if values is not None else {})
    except ValueError as error:
        raise type(error)(f"{where}: {error}") from None


def save_generator(folder: str | Path, generator: Generator, config: Config) -> Path:
    """Writes the generator's weights and its config into `folder`, which is made if need be."""
    return save_weights(folder, generator.state_dict(), config)


def save_weights(folder: str | Path, weights: Mapping[str, Tensor], config: Config) -> Path:
    """As `save_generator`, of the generator's `state_dict`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(config_to_yaml(config))
    return folder


def load_generator(folder: str | Path) -> tuple[Generator, Config]:
    """The generator of a folder, ready to draw, and its config. Nothing in the folder is executed.

    Raises:
        ValueError: a file is missing or damaged, or the weights are not those of the config's generator.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: it is not a generator's folder")
    config = config_from_yaml((folder / CONFIG).read_text(), str(folder / CONFIG))
    generator = build_generator(config)
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}): fetch it again") from None
    expected = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        names = expected.keys() | found.keys()
        wrong = sorted(name for name in names if expected.get(name) != found.get(name))
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {CONFIG}: {len(wrong)} tensors differ, the first is {wrong[0]}"
        )
    generator.load_state_dict(tensors)
    return generator.eval().requires_grad_(False), config
