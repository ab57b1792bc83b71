"""The config of a released generator: sizes from the shapes of its tensors, rendering from its settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mimic3d.cameras import LABEL_SIZE
from mimic3d.checkpoints.pickle_parser import quoted
from mimic3d.config import CameraConfig, Config, ImitationConfig, ModelConfig, RenderingConfig
from mimic3d.config.recipes import cars128

RECIPE = "imported"

Shapes = Mapping[str, tuple[int, ...]]

# Image size -> the size to which S2D resizes the 2D branch's render first.
_SUPERRESOLUTION_INPUT = {128: 64, 256: 128, 512: 128}
_PATCH_RESOLUTION = 64
_SYNTHESIS, _MAPPING = "backbone.synthesis", "backbone.mapping"
# The settings that these networks implement; a checkpoint with others would render differently.
_SUPPORTED = {
    "disparity_space_sampling": False,
    "clamp_mode": "softplus",
    "superresolution_noise_mode": "none",
    "sr_antialias": True,
    "decoder_lr_mul": 1,
    "density_noise": 0,
}
_SUPPORTED_ATTRIBUTES = {"plane_act": None, "depth_guided_sample": 0}
_MAX_SAMPLES = 1024
_PLAIN = (bool, int, float, str, type(None))


def released_config(
    shapes: Shapes, attributes: Mapping[str, Any], discriminator: Shapes | None = None
) -> Config:
    """The config with which `Generator` has tensors of these shapes.

    Args:
        shapes: the shapes of all parameters and buffers of the released generator, by their full names.
        attributes: the released generator's attributes, such as `rendering_kwargs`.
        discriminator: the shapes of the released dual discriminator, if there is one.
    Raises:
        ValueError: the tensors are not those of an EG3D or Mimic3D generator of a known size, or it renders
            in a way that is not supported.
    """
    _require_supported(attributes, _SUPPORTED_ATTRIBUTES)
    settings = attributes.get("rendering_kwargs", {})
    if not isinstance(settings, dict):
        raise ValueError("the generator's rendering_kwargs are not a dictionary")
    _require_supported(settings, _SUPPORTED)
    model = _model(shapes, attributes)
    if discriminator is not None:
        model = _with_discriminator(model, discriminator)
    size = model.image_resolution
    # Generators released at 128 are of ShapeNet's cars, the others of faces.
    base = cars128() if size == 128 else Config()
    # EG3D has no 3D branch, which stage 2 would train.
    stage2_kimg = 0.0 if model.architecture == "eg3d" else base.schedule.stage2_kimg
    return replace(
        base,
        recipe=RECIPE,
        model=model,
        rendering=_rendering(base.rendering, settings),
        camera=_camera(base.camera, settings),
        schedule=replace(base.schedule, stage2_kimg=stage2_kimg),
        imitation=ImitationConfig(
            patch_scale=_PATCH_RESOLUTION / size,
            patch_gan_weight=0.1 if size == 512 else 0.2,
        ),
    )


def label_scale(attributes: Mapping[str, Any]) -> float:
    """The factor by which the released generator multiplies the camera label before its mapping."""
    settings = attributes.get("rendering_kwargs", {})
    return 0.0 if _flag(settings, "c_gen_conditioning_zero", False) else _number(settings, "c_scale", 1.0)


def _model(shapes: Shapes, attributes: Mapping[str, Any]) -> ModelConfig:
    found = [re.match(rf"{_SYNTHESIS}\.b(\d{{1,6}})\.", name) for name in shapes]
    resolutions = sorted({int(match[1]) for match in found if match})
    if not resolutions:
        raise ValueError(f"it has no {_SYNTHESIS}.b4: it is neither an EG3D nor a Mimic3D generator")
    triplane = resolutions[-1]
    widths = {r: _shape(shapes, f"{_SYNTHESIS}.b{r}.conv1.weight", 4)[0] for r in resolutions}
    channel_base, channel_max = _channels(widths, f"{_SYNTHESIS}.b")
    w_dim, labels = _shape(shapes, f"{_MAPPING}.embed.weight", 2)
    if labels != LABEL_SIZE:
        raise ValueError(f"{_MAPPING}.embed takes labels of {labels} numbers, but cameras have {LABEL_SIZE}")
    z_dim = _shape(shapes, f"{_MAPPING}.fc0.weight", 2)[1] - w_dim
    layers = 1
    while f"{_MAPPING}.fc{layers}.weight" in shapes:
        layers += 1
    image = _image_resolution(shapes, attributes)
    neural = attributes.get("neural_rendering_resolution", 64)
    if type(neural) is not int or not 4 <= neural <= image or neural & (neural - 1):
        raise ValueError(f"neural_rendering_resolution is {_shown(neural)}, not a power of two up to {image}")
    return ModelConfig(
        image_resolution=image,
        neural_rendering_resolution=neural,
        triplane_resolution=triplane,
        z_dim=z_dim,
        w_dim=w_dim,
        mapping_layers=layers,
        channel_base=channel_base,
        channel_max=channel_max,
        discriminator_channel_base=max(channel_base, image),
        discriminator_channel_max=channel_max,
        superresolution_input=_SUPERRESOLUTION_INPUT[image],
        superresolution_channels=(
            _shape(shapes, "superresolution.block0.conv1.weight", 4)[0],
            _shape(shapes, "superresolution.block1.conv1.weight", 4)[0],
        ),
        architecture="mimic3d" if any(f"{_SYNTHESIS}.b3d" in name for name in shapes) else "eg3d",
    )


def _with_discriminator(model: ModelConfig, shapes: Shapes) -> ModelConfig:
    found = (re.fullmatch(r"b(\d{1,6})\.conv0\.weight", name) for name in shapes)
    try:
        widths = {int(match[1]): _shape(shapes, match[0], 4)[0] for match in found if match}
        widths[4] = _shape(shapes, "b4.fc.weight", 2)[0]
        base, widest = _channels(widths, "b")
    except ValueError as error:
        raise ValueError(f"in D, {error} (to import the generator alone: --generator-only)") from None
    base = max(base, model.image_resolution)
    return replace(model, discriminator_channel_base=base, discriminator_channel_max=widest)


def _channels(widths: Mapping[int, int], prefix: str) -> tuple[int, int]:
    """The base and the maximum with which each width is min(base / resolution, maximum)."""
    widest = max(widths.values())
    base = max(r * width for r, width in widths.items())
    for r, width in widths.items():
        if width != min(base // r, widest):
            raise ValueError(
                f"{prefix}{r} has {width} channels, but the other blocks imply {min(base // r, widest)}"
            )
    return base, widest


def _image_resolution(shapes: Shapes, attributes: Mapping[str, Any]) -> int:
    # S2D's convolutions have the same shapes at every size; its unused noise buffers have the image's.
    name = "superresolution.block1.conv1.noise_const"
    size = shapes[name][-1] if shapes.get(name) else attributes.get("img_resolution")
    if type(size) is not int or size not in _SUPERRESOLUTION_INPUT:
        known = ", ".join(map(str, _SUPERRESOLUTION_INPUT))
        raise ValueError(f"its images have size {_shown(size)}, but the supported sizes are {known}")
    return size


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"the tensor {name} is missing")
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"the tensor {name} has the shape {shape}, not {dimensions} dimensions")
    return shape


def _rendering(base: RenderingConfig, settings: Mapping[str, Any]) -> RenderingConfig:
    return RenderingConfig(
        near=_number(settings, "ray_start", base.near),
        far=_number(settings, "ray_end", base.far),
        box_warp=_number(settings, "box_warp", base.box_warp),
        coarse_samples=_samples(settings, "depth_resolution", base.coarse_samples),
        importance_samples=_samples(settings, "depth_resolution_importance", base.importance_samples),
        # Settings without this key mean a black background.
        white_background=_flag(settings, "white_back", base.white_background and not settings),
    )


def _camera(base: CameraConfig, settings: Mapping[str, Any]) -> CameraConfig:
    pivot = settings.get("avg_camera_pivot", base.pivot)
    if not isinstance(pivot, list | tuple) or len(pivot) != 3:
        raise ValueError(f"rendering_kwargs: avg_camera_pivot is {_shown(pivot)}, not three numbers")
    x, y, z = (_number({"avg_camera_pivot": value}, "avg_camera_pivot", 0.0) for value in pivot)
    return replace(base, radius=_number(settings, "avg_camera_radius", base.radius), pivot=(x, y, z))


def _number(settings: Mapping[str, Any], key: str, default: float) -> float:
    value = settings.get(key, default)
    if type(value) not in (int, float) or not abs(value) < 1e9:
        raise ValueError(f"rendering_kwargs: {key} is {_shown(value)}, but must be a plain number")
    return float(value)


def _flag(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key, default)
    if type(value) is not bool:
        raise ValueError(f"rendering_kwargs: {key} is {_shown(value)}, not true or false")
    return value


def _samples(settings: Mapping[str, Any], key: str, default: int) -> int:
    value = settings.get(key, default)
    if type(value) is not int or not 4 <= value <= _MAX_SAMPLES:
        raise ValueError(
            f"rendering_kwargs: {key} is {_shown(value)}, but must be a whole number from 4 to {_MAX_SAMPLES}"
        )
    return value


def _require_supported(values: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    for key, wanted in supported.items():
        value = values.get(key, wanted)
        if not isinstance(value, _PLAIN) or value != wanted:
            raise ValueError(f"it renders with {key}={_shown(value)}, but only {key}={wanted!r} is supported")


def _shown(value: object) -> str:
    items = value if isinstance(value, list | tuple) else [value]
    # Nested values are shown by their type only: printing them could take very long.
    plain = all(isinstance(item, _PLAIN) for item in items)
    return quoted(repr(value)) if plain else f"a {type(value).__name__}"
