"""What one client of the viewer wants to see: the object, the cameras, and how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Blend = Literal["none", "interpolate", "mix"]
Shown = Literal["3D branch", "2D branch", "side by side", "difference"]
Channel = Literal["colour", "depth", "normals", "opacity"]
BLENDS: tuple[Blend, ...] = get_args(Blend)
SHOWN: tuple[Shown, ...] = get_args(Shown)
CHANNELS: tuple[Channel, ...] = get_args(Channel)


@dataclass(frozen=True)
class Identity:
    """The object: what the mapping and the backbone take.

    Attributes:
        seed: of the latent z.
        second_seed: of the latent that is blended in.
        blend: "interpolate" goes from the first w to the second by `share`; "mix" takes the layers from
            `second_layers` on from the second w.
        share: of the second w, from 0 to 1.
        second_layers: the first layer that is the second w's.
        truncation: 1 for none, 0 for the average object.
        conditioning: the 25 numbers of the camera that the generator is conditioned on.
    """

    seed: int
    conditioning: tuple[float, ...]
    second_seed: int = 1
    blend: Blend = "none"
    share: float = 0.5
    second_layers: int = 0
    truncation: float = 1.0


@dataclass(frozen=True)
class ViewSettings:
    """All that a picture depends on, except the model.

    Attributes:
        camera: the 25 numbers of the camera that looks.
        samples: along each ray, both passes together.
        size: pixels along a side of the sharp picture.
        aspect: width of the browser's canvas over its height.
    """

    identity: Identity
    camera: tuple[float, ...]
    samples: int
    size: int
    shown: Shown = "3D branch"
    channel: Channel = "colour"
    aspect: float = 1.0

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are rendered, "2d" before "3d"."""
        if self.shown in ("side by side", "difference"):
            return ("2d", "3d")
        return ("2d",) if self.shown == "2D branch" else ("3d",)


def shown_by(branches: tuple[str, ...]) -> tuple[Shown, ...]:
    """The choices of `ViewSettings.shown` for a generator that has these branches."""
    if len(branches) == 2:
        return SHOWN
    return ("2D branch",) if branches == ("2d",) else ("3D branch",)


def label_numbers(label: Tensor) -> tuple[float, ...]:
    """The 25 numbers of a label (25,) or (1, 25)."""
    return tuple(label.flatten().tolist())
