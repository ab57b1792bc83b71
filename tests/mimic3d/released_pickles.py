"""Network pickles in the released format, made of our own generators for tests.

The format is that of persistent classes: each part of a network is reduced to a call of
`torch_utils.persistence._reconstruct_persistent_obj` with its class's name, its source text (blank here) and
its attributes. The names have to be importable while a pickle is written, so they are put in place for that
long.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mimic3d.networks.generator import Generator

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks")


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("a network pickle was executed")


class OSGDecoder:
    """One of the released parts that are pickled as plain modules."""


class EasyDict(dict):
    """The dictionary that released configs are made of."""


class Persistent:
    """A part that is pickled as a persistent class."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": "", "class_name": self.class_name}
        return _reconstruct_persistent_obj, (meta | {"state": self.state},)


class Call:
    """A call of anything at all, as hostile pickles have them."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    places = {
        "torch_utils.persistence": _reconstruct_persistent_obj,
        "training.triplane": OSGDecoder,
        "dnnlib.util": EasyDict,
    }
    before = dict(sys.modules)
    for name, member in places.items():
        parent = name.split(".")[0]
        sys.modules.setdefault(parent, types.ModuleType(parent))
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], member.__name__, member)
        member.__module__ = name
    try:
        yield
    finally:
        for name in {*places, *(name.split(".")[0] for name in places)} - before.keys():
            del sys.modules[name]


def dump(value: Any, protocol: int = 4) -> bytes:
    with _importable():
        return pickle.dumps(value, protocol)


RENDERING = {
    "depth_resolution": 4,
    "depth_resolution_importance": 5,
    "ray_start": 0.1,
    "ray_end": 2.6,
    "box_warp": 1.6,
    "white_back": True,
    "disparity_space_sampling": False,
    "clamp_mode": "softplus",
    "superresolution_noise_mode": "none",
    "sr_antialias": True,
    "decoder_lr_mul": 1,
    "c_scale": 1.0,
    "c_gen_conditioning_zero": False,
    "avg_camera_radius": 1.7,
    "avg_camera_pivot": [0, 0, 0],
    "density_reg": 0.25,
}


def released_tensors(generator: Generator) -> dict[str, Tensor]:
    """The generator's tensors and the filters that the released networks keep beside them."""
    fir = torch.tensor([1.0, 3.0, 3.0, 1.0])
    parameters = dict(generator.named_parameters())
    tensors = {name: parameters.get(name, value) for name, value in generator.state_dict().items()}
    for place in ("superresolution", "superresolution.block1.conv0", "backbone.synthesis.b8.conv0"):
        tensors[f"{place}.resample_filter"] = fir[:, None] * fir / 64
    return tensors


def network(tensors: dict[str, Any], attributes: dict[str, Any], prefix: str = "") -> Any:
    """The tree of parts that holds `tensors` by their full names."""
    state: dict[str, Any] = {"training": False, "_parameters": {}, "_buffers": {}, "_modules": {}}
    state |= {"_non_persistent_buffers_set": set(), **{hooks: OrderedDict() for hooks in HOOKS}}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            parts.setdefault(first, {})[rest] = value
        else:
            state["_parameters" if isinstance(value, nn.Parameter) else "_buffers"][name] = value
    state["_modules"] = {name: network(part, {}, f"{prefix}{name}.") for name, part in parts.items()}
    if prefix == "decoder.":
        decoder = OSGDecoder()
        decoder.__dict__ = state
        return decoder
    return Persistent("Generator", state | attributes)


def checkpoint(
    generator: Generator,
    *,
    change: dict[str, Any] | None = None,
    attributes: dict[str, Any] | None = None,
    rendering: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> bytes:
    """A released checkpoint of `generator`.

    Args:
        change: tensors to put in place of its own, by name; None leaves one out.
        attributes: of the generator, besides those that the format has.
        rendering: settings in place of `RENDERING`'s; None leaves one out.
        extra: entries of the pickle besides G_ema.
    """
    tensors = {**released_tensors(generator), **(change or {})}
    settings = {k: v for k, v in {**RENDERING, **(rendering or {})}.items() if v is not None}
    own = {
        "img_resolution": generator.config.image_resolution,
        "neural_rendering_resolution": generator.config.neural_rendering_resolution,
        "rendering_kwargs": settings,
        "_init_kwargs": EasyDict(mapping_kwargs=EasyDict(num_layers=2)),
    }
    kept = {name: value for name, value in tensors.items() if value is not None}
    whole = {"training_set_kwargs": EasyDict(resolution=128, use_labels=True)}
    whole["G_ema"] = network(kept, own | (attributes or {}))
    return dump(whole | {"G": None, "D": None, "augment_pipe": None} | (extra or {}))
