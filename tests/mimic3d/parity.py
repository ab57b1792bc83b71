"""How close networks and training phases are to the released implementations, entry by entry.

A reference file holds numbers measured on a released implementation whose weights were given by a rule.
Here the same rule fills our networks, and every measured entry is computed again. As a program it prints the
table:

    python tests/mimic3d/parity.py [FOLDER] [--bound 1e-3]

A folder may hold files of networks, which this module compares, and of training phases (`phase_parity.py`,
with a bound of its own). Without a folder the table is of `reference_figures.json`, a part of two of the
networks' references, and of `phase_figures.json`.

Gradients are computed in float64. Of millions of leaky ReLUs a few stand within float32's rounding of their
kink, on one side here and on the other there. The gradient of a noise strength, a sum over a million numbers
that nearly cancel, shows each of them. As the reference is float32, these gradients are judged by what
float32 does to ours: see `noise_strength_error`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimic3d.cameras import FFHQ_FOCAL, look_at, on_sphere
from mimic3d.config import Config, ImitationConfig, ModelConfig, RenderingConfig, ScheduleConfig
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator
from mimic3d.networks.generator import Generator
from mimic3d.rendering.patches import crop, patch_uv

SUPERRESOLUTION = {
    "SuperresolutionHybrid8X": (128, (256, 128)),
    "SuperresolutionHybrid8XDC": (128, (256, 128)),
    "SuperresolutionHybrid4X": (128, (128, 64)),
    "SuperresolutionHybrid2X": (64, (128, 64)),
}


FIGURES = Path(__file__).parent / "reference_figures.json"
GRADIENTS = "grad_norm"
CONFIG_KEYS = (
    *("image_resolution", "triplane_resolution", "neural_rendering_resolution", "depth_samples"),
    *(
        "importance_samples",
        "channel_base",
        "channel_max",
        "aware3d_resolutions",
        "patch_scale",
        "near",
        "far",
    ),
    *("box_warp", "white_background", "batch", "patch_corners_top_left", "superresolution"),
)


class BadReference(ValueError):
    """A reference that cannot be compared with: one line that names what is wrong with it."""


def seeded(shape: list[int], name: str) -> Tensor:
    """Standard normal numbers that are a function of a name; float32's, whatever the default type."""
    source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=source, dtype=torch.float32).to(torch.get_default_dtype())


def rule(name: str, noise: Tensor) -> Tensor:
    """The value of the tensor `name` in its network."""
    leaf = name.rsplit(".", 1)[-1]
    is_mapping = "mapping.fc" in name
    if leaf == "weight":
        return noise / 0.01 if is_mapping else 0.4 * noise if ".torgb." in name else noise
    if leaf == "bias":
        return noise if is_mapping else 1 + 0.1 * noise if ".affine." in name else 0.1 * noise
    return 0.1 * noise if leaf in ("noise_strength", "w_avg") else noise


def fill(network: nn.Module, shapes: dict[str, list[int]], prefix: str, *, partial: bool = False) -> None:
    """Gives every tensor of `network` its value; with `partial` those that `shapes` has.

    Raises:
        BadReference: the tensors or shapes are not those of the reference.
    """
    own = dict(network.state_dict())
    listed = {name: shape for name, shape in shapes.items() if not name.endswith("resample_filter")}
    unused_noise = {name for name in own if name.startswith("superresolution.") and "noise" in name}
    sides = ((listed, own, "the reference"), (own, listed, "the network here"))
    for there, here, owner in sides[:1] if partial else sides:
        alone = sorted(set(there) - set(here) - unused_noise)
        if alone:
            more = f" and {len(alone) - 1} more tensors" if len(alone) > 1 else ""
            raise BadReference(f"{prefix or 'G'}: only {owner} has {alone[0]}{more}")
    for name, shape in listed.items():
        if math.prod(shape) != own[name].numel():
            raise BadReference(f"{prefix}{name} is {shape} in the reference, {list(own[name].shape)} here")
        own[name].copy_(rule(name, seeded(shape, prefix + name)).view_as(own[name]))


def reference_cameras(batch: int, first: int = 0, radius: float = 2.7, focal: float = FFHQ_FOCAL) -> Tensor:
    """(batch, 25), the cameras that the references were measured with, from the one numbered `first` on.

    They are float32, whatever the default type.
    """
    index = torch.arange(first, first + batch, dtype=torch.float64)
    yaw, pitch = 0.3 * torch.sin(1 + index), 0.2 * torch.cos(2 + index)
    cameras = look_at(on_sphere(yaw, pitch, radius), focal=focal)
    return cameras.to(torch.float32).to(torch.get_default_dtype())


def config_of(reference: dict[str, Any]) -> Config:
    """Our config of a reference's networks."""
    c = reference["config"]
    missing = [key for key in CONFIG_KEYS if key not in c]
    if missing:
        raise BadReference(f"its config has no {missing[0]}")
    if c["superresolution"] not in SUPERRESOLUTION:
        known = ", ".join(SUPERRESOLUTION)
        raise BadReference(f"superresolution is {c['superresolution']!r}, known are {known}")
    superresolution_input, channels = SUPERRESOLUTION[c["superresolution"]]
    model = ModelConfig(
        image_resolution=c["image_resolution"],
        neural_rendering_resolution=c["neural_rendering_resolution"],
        triplane_resolution=c["triplane_resolution"],
        channel_base=c["channel_base"],
        channel_max=c["channel_max"],
        discriminator_channel_base=c["channel_base"],
        discriminator_channel_max=c["channel_max"],
        superresolution_input=superresolution_input,
        superresolution_channels=channels,
        architecture="mimic3d" if c["aware3d_resolutions"] else "eg3d",
    )
    rendering = RenderingConfig(
        c["near"],
        c["far"],
        float(c["box_warp"]),
        c["depth_samples"],
        c["importance_samples"],
        c["white_background"],
    )
    patch = round(c["image_resolution"] * c["patch_scale"])
    # EG3D's generator has no 3D branch, which a second stage would train.
    stages = {} if c["aware3d_resolutions"] else {"stage2_kimg": 0.0}
    return Config(
        model=model,
        rendering=rendering,
        imitation=ImitationConfig(patch, c["patch_scale"]),
        schedule=ScheduleConfig(**stages),
    )


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Networks and numbers made inside are of `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def measure(
    reference: dict[str, Any], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor | float | dict[str, float | None]]:
    """Every measured entry of a reference, computed with our networks in `dtype`."""
    with default_dtype(dtype):
        return _measure(reference)


def _measure(reference: dict[str, Any]) -> dict[str, Tensor | float | dict[str, float | None]]:
    config, salt = config_of(reference), reference["salt"]
    model, batch = config.model, reference["config"]["batch"]
    generator = Generator(config.model, config.rendering)
    widths = (model.discriminator_channel_base, model.discriminator_channel_max)
    dual = DualDiscriminator(model.image_resolution, *widths)
    fill(generator, reference["tensors"]["G"], salt)
    fill(dual, reference["tensors"]["D"], salt + "D.")

    z, camera = seeded([batch, model.z_dim], salt + "z"), reference_cameras(batch)
    has_3d = model.architecture == "mimic3d"
    ws = generator.mapping(z, camera)
    planes = generator.planes(ws, detail=has_3d, noise="const")
    view = generator.branch_2d(planes, ws, camera)
    found: dict[str, Any] = {"ws": ws, "image": view.image, "image_raw": view.raw, "image_depth": view.depth}

    box = config.rendering.box_warp
    source = torch.Generator().manual_seed(7)
    points = torch.rand(batch, 64, 3, generator=source, dtype=torch.float32).to(z) * box - box / 2
    found["sigma_at_points"] = generator.field(planes, points)[0]

    image, raw = view.image.detach().requires_grad_(), view.raw.detach().requires_grad_()
    logits = dual(image, raw, camera)
    gradients = torch.autograd.grad(logits.sum(), [image, raw])
    found["d_logits"] = logits
    found["r1_penalty"] = sum(g.square().sum(dim=(1, 2, 3)) for g in gradients)
    if has_3d:
        patch_dual = PatchDiscriminator(config.patch_resolution, *widths)
        fill(patch_dual, reference["tensors"]["D_patch"], salt + "DP.")
        found["plane_coarse"], found["plane_detail"] = planes.coarse, planes.detail
        corners = torch.tensor(reference["config"]["patch_corners_top_left"])
        size = config.patch_resolution
        uv = patch_uv(corners, size, model.image_resolution)
        rendered = generator.branch_3d(planes, camera, uv).features
        patch_3d = rendered.transpose(1, 2).unflatten(-1, (size, size))
        patch_2d = crop(view.image, corners, size)
        patch_logits = patch_dual(patch_3d)
        loss = (
            (patch_3d - patch_2d.detach()).abs().mean()
            + F.softplus(-dual(view.image, view.raw, camera)).mean()
            + 0.1 * F.softplus(-patch_logits).mean()
        )
        loss.backward()
        found |= {
            "patch_3d": patch_3d,
            "patch_2d": patch_2d,
            "dpatch_logits": patch_logits,
            "loss": loss.item(),
        }
        found["grad_norm"] = {
            name: None if parameter.grad is None else parameter.grad.norm().item()
            for name, parameter in generator.named_parameters()
        }
    return found


def errors(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """The largest relative error of each measured entry.

    Raises:
        BadReference: an entry that nothing here corresponds to.
    """
    table: dict[str, float] = {}
    for name, entry in expected.items():
        if name not in found:
            raise BadReference(f"its entry {name} has no counterpart here; there are {', '.join(found)}")
        value = found[name]
        if name == GRADIENTS:
            floor = _gradient_floor(entry)
            table[name] = max(_gradient_error(norm, value.get(key), floor) for key, norm in entry.items())
        elif isinstance(entry, dict):
            table[name] = _tensor_error(entry, value.detach())
        else:
            table[name] = abs(value - entry) / abs(entry)
    return table


def compare(reference: dict[str, Any]) -> dict[str, float]:
    """The largest relative error of each entry: of values in float32, of gradients in float64."""
    expected = reference["measured"]
    found = measure(reference)
    table = errors(expected, found)
    if GRADIENTS in expected:
        exact = measure(reference, torch.float64)
        parts: tuple[dict[str, float | None], ...] = ({}, {})
        for name, norm in expected[GRADIENTS].items():
            parts[name.endswith("noise_strength")][name] = norm
        others, strengths = parts
        floor = _gradient_floor(expected[GRADIENTS])
        beyond_noise = noise_strength_error(strengths, exact[GRADIENTS], found[GRADIENTS], floor)
        table[GRADIENTS] = max(errors({GRADIENTS: others}, exact)[GRADIENTS], beyond_noise)
    return table


def noise_strength_error(
    expected: dict[str, float | None],
    exact: dict[str, float | None],
    rounded: dict[str, float | None],
    floor: float,
) -> float:
    """The largest relative error of noise strengths' gradients beyond the float32 noise of the reference.

    The noise is estimated as three times the root mean square, over all noise strengths, of the relative
    difference between our own gradients in float32 and in float64.

    Args:
        expected: the reference's, in float32.
        exact, rounded: ours, in float64 and in float32.
        floor: the least norm that errors are relative to.
    """
    differences = [_gradient_error(exact[name], rounded[name], floor) for name in expected]
    noise = 3 * math.sqrt(sum(difference**2 for difference in differences) / max(len(differences), 1))
    found = [_gradient_error(norm, exact[name], floor) for name, norm in expected.items()]
    return max((max(error - noise, 0.0) for error in found), default=0.0)


def _gradient_floor(norms: dict[str, float | None]) -> float:
    """A thousandth of the largest norm: below it, what the reference has is float32's rounding."""
    return 1e-3 * max((norm for norm in norms.values() if norm is not None), default=0.0)


def _gradient_error(expected: float | None, found: float | None, floor: float) -> float:
    if expected is None or found is None:
        return 0.0 if not expected and not found else math.inf
    return abs(found - expected) / max(expected, floor)


def _tensor_error(entry: dict[str, Any], value: Tensor) -> float:
    if list(value.shape) != entry["shape"]:
        return math.inf
    flat = value.reshape(-1).double()
    index = entry.get("position") or [(flat.numel() - 1) * k // 23 for k in range(24)]
    picked, target = flat[index], torch.tensor(entry["value"], dtype=torch.float64)
    scale = entry["l2"] / math.sqrt(flat.numel())
    return max(
        ((picked - target).abs() / target.abs().clamp(min=scale)).max().item(),
        abs(flat.mean().item() - entry["mean"]) / max(abs(entry["mean"]), scale),
        abs(flat.std().item() - entry["std"]) / entry["std"],
        abs(flat.norm().item() - entry["l2"]) / entry["l2"],
    )


def read(file: Path) -> list[dict[str, Any]]:
    """The references of a file of networks, which is one or a list of them.

    Raises:
        BadReference: it cannot be read, or is not a reference.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadReference(f"cannot be read ({error})") from None
    references = content if isinstance(content, list) else [content]
    for reference in references:
        for key in ("name", "salt", "config", "tensors", "measured"):
            if not isinstance(reference, dict) or key not in reference:
                raise BadReference(f"is no reference: it has no {key!r}")
    return references


def is_of_phases(file: Path) -> bool:
    """Whether a file holds training phases; a file that cannot be read does not."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "cases" in content


def rows_of(file: Path) -> Iterator[tuple[str, float]]:
    """The rows of a file's table: what is compared, and its largest relative error."""
    if is_of_phases(file):
        import phase_parity

        for name, case in phase_parity.read(file).items():
            for phase in phase_parity.compare(case):
                yield f"{name:24} {phase.phase} losses", phase.loss
                yield f"{name:24} {phase.phase} gradients", phase.gradient
        return
    for reference in read(file):
        for name, error in compare(reference).items():
            yield f"{reference['name']:24} {name}", error


def main() -> int:
    import phase_parity

    figures = FIGURES, phase_parity.FIGURES
    parser = argparse.ArgumentParser(description="Largest relative error of every measured entry.")
    names = " and ".join(file.name for file in figures)
    parser.add_argument("folder", type=Path, nargs="?", help=f"of references, *.json; else {names}")
    parser.add_argument("--bound", type=float, default=1e-3, help="of the networks' relative errors")
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder is not None and not folder.is_dir():
        print(f"error: there is no folder {folder}: give that of the references (*.json)", file=sys.stderr)
        return 2
    files = list(figures) if folder is None else sorted(folder.glob("*.json"))
    if not files:
        print(f"error: {folder} holds no reference (*.json): give another folder", file=sys.stderr)
        return 2
    # By bound, as the phases' are float64 on both sides.
    worst = dict.fromkeys((arguments.bound, phase_parity.BOUND), 0.0)
    for file in files:
        bound = phase_parity.BOUND if is_of_phases(file) else arguments.bound
        try:
            for name, error in rows_of(file):
                worst[bound] = error if math.isnan(error) else max(worst[bound], error)
                verdict = "" if error <= bound else "TOO LARGE"
                print(f"{name:43} {error:9.1e} {verdict}".rstrip(), flush=True)
        except (ValueError, KeyError) as error:
            reason = f"is no reference: it has no {error}" if isinstance(error, KeyError) else error
            print(f"error: {file}: {reason}", file=sys.stderr)
            return 2
    summary = (f"largest relative error {error:.1e}, bound {bound:g}" for bound, error in worst.items())
    print("; of training phases: ".join(summary))
    return int(any(not error <= bound for bound, error in worst.items()))


if __name__ == "__main__":
    sys.exit(main())
