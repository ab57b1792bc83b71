"""A tiny generator's folder, and a model's name that no other test uses."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d.networks.generator import build_generator
from mimic3d_platform.models import registration
from mimic3d_platform.tracking import start_or_resume_run

TINY = {
    "model.image_resolution": 16,
    "model.neural_rendering_resolution": 8,
    "model.triplane_resolution": 8,
    "model.superresolution_input": 8,
    "model.superresolution_channels": (4, 4),
    "model.z_dim": 8,
    "model.w_dim": 8,
    "model.channel_base": 64,
    "model.channel_max": 8,
    "model.plane_channels": 4,
    "rendering.coarse_samples": 6,
    "rendering.importance_samples": 6,
}


@pytest.fixture(scope="session")
def tiny() -> Config:
    """The config of a generator that takes milliseconds to render."""
    return override(get_recipe("cars-demo"), TINY)


@pytest.fixture
def generator_folder(tiny: Config, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a generator of `tiny` from a seed."""

    def make(name: str = "made", seed: int = 0) -> Path:
        torch.manual_seed(seed)
        return save_generator(tmp_path / name, build_generator(tiny), tiny)

    return make


@pytest.fixture
def name() -> str:
    return f"cars-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def run_id(stack: object) -> str:
    return start_or_resume_run(f"test-{uuid.uuid4().hex[:8]}", "run")


@pytest.fixture
def no_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers without previews, which take longest."""
    monkeypatch.setattr(registration, "write_previews", lambda *_: [])
