"""A generator's folder: `generator.safetensors` with its weights, and `config.yaml` with the run's config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mimic3d.checkpoints.file_names import CONFIG, GENERATOR_WEIGHTS
from mimic3d.config import Config, config_from_yaml, config_to_yaml
from mimic3d.networks.generator import Generator, build_generator


def save_generator(folder: str | Path, generator: Generator, config: Config) -> Path:
    """Writes a generator's weights and config into `folder`, which is created if it does not exist."""
    return save_weights(folder, generator.state_dict(), config)


def save_weights(folder: str | Path, weights: Mapping[str, Tensor], config: Config) -> Path:
    """Writes a generator's folder from its `state_dict`; see `save_generator`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / GENERATOR_WEIGHTS)
    (folder / CONFIG).write_text(config_to_yaml(config), encoding="utf-8")
    return folder


def load_generator(folder: str | Path) -> tuple[Generator, Config]:
    """Loads the generator of a folder, in evaluation mode, and its config. Nothing in it is executed.

    Raises:
        ValueError: a file is missing or damaged, or the weights do not fit the config.
    """
    folder = Path(folder)
    for name in (CONFIG, GENERATOR_WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: it is not a generator's folder")
    config = config_from_yaml((folder / CONFIG).read_text(encoding="utf-8"), str(folder / CONFIG))
    generator = build_generator(config)
    try:
        tensors = load_file(folder / GENERATOR_WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / GENERATOR_WEIGHTS} is damaged ({error}): copy it again") from None
    expected = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        names = expected.keys() | found.keys()
        wrong = sorted(name for name in names if expected.get(name) != found.get(name))
        raise ValueError(
            f"{folder / GENERATOR_WEIGHTS} does not fit {CONFIG}: {len(wrong)} tensors differ, the first is "
            f"{wrong[0]}"
        )
    generator.load_state_dict(tensors)
    return generator.eval().requires_grad_(False), config
