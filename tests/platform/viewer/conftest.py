"""The model that comes with the package, loaded once, and settings to draw it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mimic3d.export.orbits import at_yaw, front
from mimic3d_platform.models.model_uris import load_generator
from mimic3d_platform.viewer.drawing import DrawingSession
from mimic3d_platform.viewer.view_settings import Identity, ViewSettings, label_numbers

Settings = Callable[..., ViewSettings]


@pytest.fixture(scope="module")
def session() -> DrawingSession:
    """A session of the model that comes with the package."""
    return DrawingSession(*load_generator("builtin:cars"), "builtin:cars")


@pytest.fixture
def settings(session: DrawingSession) -> Settings:
    """Makes settings of the cars: seed 0 from the front by default, small and with few samples."""
    camera = session.model.config.camera

    def make(yaw: float = 0.0, **changes: Any) -> ViewSettings:
        identity = Identity(0, label_numbers(front(camera)))
        of_identity = {name: changes.pop(name) for name in list(changes) if hasattr(identity, name)}
        label = label_numbers(at_yaw(camera, torch.tensor([yaw], dtype=torch.float64)))
        made = ViewSettings(replace(identity, **of_identity), label, samples=16, size=32)
        return replace(made, **changes)

    return make
