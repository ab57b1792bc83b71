"""How close our training phases are to the released ones: losses, and gradients parameter by parameter.

    python tests/mimic3d/phase_parity.py [FILE] [--case NAME ...] [--verbose]

A reference file holds cases: the losses that a released phase reports and its gradients, measured in float64
with weights, images and random numbers that are given by a rule. Without a file the cases are those of
`phase_figures.json`. Both sides are float64, so that an error above 1e-8 is a difference of meaning, not of
rounding.

`build`, `phases_of` and `REPORTED` are all that knows our API: the networks, the inputs with the calls of the
phases, and the names of what they log. The rest knows the reference only.

The reference has one noise map for all planes, so that it does not show whether planes share theirs. The
swapping of labels, the sampling of windows and augmentations, Adam, the average, ADA's control and half
precision are not in it either; other tests hold these.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from parity import BadReference, default_dtype, fill, reference_cameras, seeded
from torch import Tensor, nn

from mimic3d.config import (
    AugmentationConfig,
    Config,
    ImitationConfig,
    ModelConfig,
    RegularizationConfig,
    RenderingConfig,
    ScheduleConfig,
)
from mimic3d.losses.perceptual import PerceptualDistance
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator
from mimic3d.networks.generator import Generator
from mimic3d.rendering.patches import PatchWindows
from mimic3d.training.augmentation import Augmentation
from mimic3d.training.phases import Losses, PhaseContext, Phases, Reals
from mimic3d.training.sampling import GeneratorInputs, PatchInputs

FIGURES = Path(__file__).parent / "phase_figures.json"
BOUND = 1e-6
SALT = "phases/"
DRAWS = ("rand", "randn", "rand_like", "randn_like")

# Released phase -> what it reports -> (our name, the key of a case that ours is multiplied by).
REPORTED: dict[str, dict[str, tuple[str, str | None]]] = {
    "Gmain": {
        "Loss/G/loss": ("loss/generator_2d", None),
        "Loss/G/lpips": ("loss/imitation", "lpips_weight"),
        "Loss/G/patch": ("loss/generator_patch", "patch_gan_weight"),
        "Loss/scores/fake": ("logits/fake_2d", None),
        "Loss/scores/patch_fake": ("logits/fake_patch", None),
    },
    "Greg": {"Loss/G/reg": ("loss/density", "density_weight")},
    "Dmain": {
        "Loss/D/loss": ("loss/discriminator_2d", None),
        "Loss/scores/real": ("logits/real_2d", None),
        "Loss/signs/real": ("logits/real_sign", None),
    },
    "Dreg": {"Loss/r1_penalty": ("loss/r1_2d", None), "Loss/signs/real": ("logits/real_sign", None)},
    "D_patchmain": {
        "Loss/D_patch/loss": ("loss/discriminator_patch", None),
        "Loss/scores/patch_real": ("logits/real_patch", None),
    },
    "D_patchreg": {"Loss/patch_r1_penalty": ("loss/r1_patch", None)},
}


class Networks(NamedTuple):
    """What `Phases` is made of, with weights by the rule."""

    config: Config
    generator: Generator
    dual: DualDiscriminator
    patch: PatchDiscriminator
    perceptual: PerceptualDistance

    def trained_by(self, phase: str) -> nn.Module:
        """The network that a released phase takes gradients of."""
        return self.generator if phase.startswith("G") else self.patch if "patch" in phase else self.dual


def build(case: dict[str, Any], shapes: dict[str, dict[str, list[int]]] | None) -> Networks:
    """Our config and networks of a case; `shapes` are those of its tensors, by network, our own when None."""
    widths = {"channel_base": case["channel_base"], "channel_max": case["channel_max"]}
    config = Config(
        model=ModelConfig(
            image_resolution=case["image_resolution"],
            neural_rendering_resolution=case["neural_rendering_resolution"],
            triplane_resolution=case["triplane_resolution"],
            superresolution_input=64,
            superresolution_channels=(128, 64),
            **widths,
            **{f"discriminator_{key}": value for key, value in widths.items()},
        ),
        rendering=RenderingConfig(
            near=case["near"],
            far=case["far"],
            box_warp=case["box_warp"],
            coarse_samples=case["depth_samples"],
            importance_samples=case["importance_samples"],
            white_background=case["white_background"],
        ),
        imitation=ImitationConfig(
            patch_scale=case["neural_rendering_resolution"] / case["image_resolution"],
            lpips_weight=case["lpips_weight"],
            patch_gan_weight=case["patch_gan_weight"],
        ),
        regularization=RegularizationConfig(
            r1_gamma=case["r1_gamma"],
            r1_gamma_patch=case["r1_gamma_patch"],
            r1_interval=case["r1_interval"],
            density_weight=case["density_weight"],
            density_distance_stage1=case["density_distance"],
            density_distance_stage2=case["density_distance"],
            density_points=1000,
            density_interval=case["density_interval"],
        ),
        augmentation=AugmentationConfig(mode="none" if case["augment"] is None else "ada"),
        schedule=ScheduleConfig(batch=case["batch"]),
    )
    generator = Generator(config.model, config.rendering)
    dual = DualDiscriminator(case["image_resolution"], *widths.values())
    patch = PatchDiscriminator(config.patch_resolution, *widths.values())
    with torch.no_grad():
        for name, network, prefix in (("G", generator, ""), ("D", dual, "D."), ("D_patch", patch, "DP.")):
            own = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
            fill(network, own if shapes is None else shapes.get(name, {}), SALT + prefix, partial=True)
    perceptual = PerceptualDistance(_vgg_weights(), "lpips-vgg16").to(torch.get_default_dtype())
    return Networks(config, generator, dual, patch, perceptual)


def phases_of(case: dict[str, Any], networks: Networks) -> dict[str, Callable[[], Losses]]:
    """Our phases by the released ones' names, each a call that returns (loss, log)."""
    batch, size, patch_size = case["batch"], case["image_resolution"], case["neural_rendering_resolution"]
    lens = case["radius"], case["focal"]
    camera = reference_cameras(batch, 0, *lens)
    conditioning = camera.roll(1, dims=0) if case["swap"] else camera
    inputs = GeneratorInputs(seeded([batch, 512], SALT + "z"), camera, conditioning)
    reals = Reals(_real_images(batch, size), reference_cameras(batch, batch, *lens), None)

    def patches(corners: list[list[int]]) -> PatchInputs:
        sides = torch.full((batch,), float(patch_size))
        return PatchInputs(
            PatchWindows(torch.tensor(corners[:batch]), sides), _augmentation_at_percentile(case, patch_size)
        )

    image = _augmentation_at_percentile(case, size)
    fake, real = patches(case["fake_corners"]), patches(case["real_corners"])
    context, phases = PhaseContext(case["stage"], case["blur_sigma"]), Phases(*networks)
    of_stage_1: dict[str, Callable[[], Losses]] = {
        "Gmain": lambda: phases.generator_main(context, inputs, image, fake),
        "Greg": lambda: phases.generator_density(context, inputs),
        "Dmain": lambda: phases.discriminator_main(context, reals, inputs, image, image),
        "Dreg": lambda: phases.discriminator_r1(context, reals, image),
    }
    if case["stage"] == 1:
        return of_stage_1
    return of_stage_1 | {
        "D_patchmain": lambda: phases.patch_discriminator_main(context, reals, inputs, fake, real),
        "D_patchreg": lambda: phases.patch_discriminator_r1(context, reals, real),
    }


# The numbers that both sides are given.


def _real_images(batch: int, size: int) -> Tensor:
    low = F.interpolate(
        seeded([batch, 3, 16, 16], SALT + "real.low"), (size, size), mode="bilinear", align_corners=False
    )
    return (0.5 * low + 0.1 * seeded([batch, 3, size, size], SALT + "real.high")).clamp(-1, 1)


def _vgg_weights() -> dict[str, Tensor]:
    """VGG16's convolutions by torchvision's names."""
    weights, index, width = {}, 0, 3
    for channels, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            name, scale = f"features.{index}", math.sqrt(2 / (width * 9))
            weights[f"{name}.weight"] = scale * seeded([channels, width, 3, 3], f"{SALT}VGG.{name}.weight")
            weights[f"{name}.bias"] = 0.1 * seeded([channels], f"{SALT}VGG.{name}.bias")
            index, width = index + 2, channels
        index += 1
    return weights


@contextlib.contextmanager
def _fixed_draws() -> Iterator[None]:
    """Jitter 0.5, importance quantiles evenly spaced, one noise map for all, the rule's density points."""
    real = {name: getattr(torch, name) for name in DRAWS}
    dtype = torch.get_default_dtype()

    def shape_of(arguments: tuple[Any, ...]) -> list[int]:
        whole = len(arguments) == 1 and not isinstance(arguments[0], int)
        return list(arguments[0] if whole else arguments)

    def rand(*arguments: Any, **_: Any) -> Tensor:
        shape = shape_of(arguments)
        if len(shape) == 3 and shape[-1] == 3:
            source = torch.Generator().manual_seed(_crc(SALT + "points"))
            return real["rand"](shape, generator=source, dtype=torch.float32).to(dtype)
        if len(shape) == 3:
            return torch.linspace(0, 1, shape[-1], dtype=dtype).expand(shape)
        return torch.full(shape, 0.5, dtype=dtype)

    def randn(*arguments: Any, **_: Any) -> Tensor:
        shape = shape_of(arguments)
        name, drawn = (SALT + "steps", shape) if shape[-1] == 3 else (f"{SALT}noise{shape[-1]}", shape[-2:])
        source = torch.Generator().manual_seed(_crc(name))
        return real["randn"](drawn, generator=source, dtype=torch.float32).to(dtype).expand(shape)

    torch.rand, torch.randn = rand, randn
    torch.rand_like, torch.randn_like = (lambda x, **_: rand(*x.shape)), (lambda x, **_: randn(*x.shape))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(torch, name, function)


def _augmentation_at_percentile(case: dict[str, Any], size: int) -> Augmentation:
    """The pipeline's transforms of images of `size`, all at one percentile of their distributions."""
    p, batch = case["augment"], case["batch"]
    if p is None:
        return Augmentation(None, None)
    normal = float(torch.erfinv(torch.tensor(p * 2 - 1)))  # as the released pipeline: without the root of 2
    uniform = p * 2 - 1

    def affine(linear: Any, offset: Any) -> Tensor:
        matrix = torch.eye(len(linear) + 1)
        matrix[:-1, :-1], matrix[:-1, -1] = torch.as_tensor(linear), torch.as_tensor(offset)
        return matrix

    def turn(angle: float) -> Tensor:
        cos, sin = math.cos(angle), math.sin(angle)
        return affine([[cos, -sin], [sin, cos]], [0.0, 0.0])

    def move(share: float) -> Tensor:  # of the image's side
        return affine(torch.eye(2), [2 * share, 2 * share])

    def stretch(x: float, y: float) -> Tensor:
        return affine([[x, 0.0], [0.0, y]], [0.0, 0.0])

    scale = 2 ** (normal * 0.2)
    warp = stretch(1 - 2 * math.floor(p * 2), 1.0)
    warp = turn(-math.pi / 2 * math.floor(p * 4)) @ warp
    warp = move(round(uniform * 0.125 * size) / size) @ warp
    warp = stretch(scale, scale) @ warp
    warp = turn(-uniform * math.pi) @ warp
    warp = stretch(scale, 1 / scale) @ warp
    warp = move(normal * 0.125) @ warp
    if not case.get("augment_geometry", True):
        warp = torch.eye(3)

    eye, grey = torch.eye(3), torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    zeros = [0.0] * 3
    colour = affine(eye, [normal * 0.2] * 3)
    colour = affine(eye * 2 ** (normal * 0.5), zeros) @ colour
    colour = affine(eye - 2 * grey * math.floor(p * 2), zeros) @ colour
    angle = uniform * math.pi
    colour = affine(grey + (eye - grey) * math.cos(angle) + cross * math.sin(angle), zeros) @ colour
    colour = affine(grey + (eye - grey) * 2**normal, zeros) @ colour
    return Augmentation(warp.expand(batch, 3, 3), colour[:3].expand(batch, 3, 4))


# The comparison.


class PhaseError(NamedTuple):
    """The largest relative errors of a phase."""

    phase: str
    loss: float
    gradient: float
    parameter: str
    """That of the largest gradient error."""

    @property
    def worst(self) -> float:
        return max(self.loss, self.gradient)

    def __str__(self) -> str:
        return f"{self.phase:12} losses {self.loss:7.1e}  gradients {self.gradient:7.1e}  {self.parameter}"


def compare(reference: dict[str, Any], verbose: bool = False) -> list[PhaseError]:
    """The errors of a case's phases, in float64.

    Raises:
        BadReference: the case has tensors or phases that are not ours.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with default_dtype(torch.float64):
            return [_phase_error(*row, verbose) for row in _measured(reference)]
    finally:
        torch.set_num_threads(threads)


def _measured(
    reference: dict[str, Any],
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Of each phase its name, the reference's entry, our log with its factors, and our gradients."""
    case = reference["config"]
    networks = build(case, reference.get("tensors"))
    calls = phases_of(case, networks)
    for phase, expected in reference["phases"].items():
        if phase not in calls:
            raise BadReference(f"its phase {phase} has no counterpart here; there are {', '.join(calls)}")
        network = networks.trained_by(phase)
        network.zero_grad(set_to_none=True)
        with _fixed_draws():
            loss, log = calls[phase]()
            loss.backward()
        names = REPORTED[phase].items()
        factors = {theirs: (own, 1.0 if key is None else case[key]) for theirs, (own, key) in names}
        losses = {
            theirs: float(log[own].detach()) * factor
            for theirs, (own, factor) in factors.items()
            if own in log
        }
        gradients = {
            name: None
            if parameter.grad is None
            else [float(parameter.grad.norm()), _projection(name, parameter.grad)]
            for name, parameter in network.named_parameters()
        }
        yield phase, expected, losses, gradients


def _projection(name: str, gradient: Tensor) -> float:
    return float((gradient * seeded(list(gradient.shape), "dot/" + name)).sum())


def _phase_error(
    phase: str, expected: dict[str, Any], losses: dict[str, float], gradients: dict[str, Any], verbose: bool
) -> PhaseError:
    reported = {name: expected["reported"][name] for name in REPORTED[phase] if name in expected["reported"]}
    of_losses = {
        name: abs(losses.get(name, math.inf) - value) / max(abs(value), 1e-12)
        for name, value in reported.items()
    }
    of_gradients = _gradient_errors(expected["gradients"], gradients)
    worst = max(of_gradients, key=of_gradients.__getitem__, default="-")
    if verbose:
        for name, error in of_losses.items():
            print(f"    {phase:12} {name:58} {error:9.1e}")
        for name, error in sorted(of_gradients.items(), key=lambda item: -item[1])[:12]:
            print(f"    {phase:12} {name:58} {error:9.1e}")
    return PhaseError(phase, max(of_losses.values(), default=0.0), of_gradients.get(worst, 0.0), worst)


def _gradient_errors(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """By parameter the relative error of norm and projection; infinite where only one side has a gradient."""
    floor = 1e-7 * max((entry[0] for entry in expected.values() if entry), default=1.0)
    errors = {}
    for name in expected | found:
        theirs, ours = expected.get(name) or [0.0, 0.0], found.get(name) or [0.0, 0.0]
        if theirs[0] == ours[0] == 0:
            continue
        difference = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
        one_sided = (theirs[0] == 0 and ours[0] > floor) or ours[0] == 0
        errors[name] = math.inf if one_sided else difference / max(theirs[0], floor)
    return errors


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The cases of a file of training phases, by name.

    Raises:
        BadReference: it cannot be read, or is not such a file.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadReference(f"cannot be read ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("cases"), dict):
        raise BadReference("is no reference of training phases: it has no 'cases'")
    for name, case in content["cases"].items():
        for key in ("config", "phases"):
            if key not in case:
                raise BadReference(f"is no reference of training phases: its case {name} has no {key!r}")
    return content["cases"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Largest relative errors of every training phase.")
    parser.add_argument("file", type=Path, nargs="?", default=FIGURES)
    parser.add_argument("--case", nargs="*")
    parser.add_argument("--bound", type=float, default=BOUND)
    parser.add_argument("--verbose", action="store_true", help="print the errors of losses and parameters")
    arguments = parser.parse_args()
    worst = 0.0
    for name, reference in read(arguments.file).items():
        if arguments.case and name not in arguments.case:
            continue
        for row in compare(reference, arguments.verbose):
            worst = max(worst, row.worst)
            verdict = "" if row.worst <= arguments.bound else "TOO LARGE"
            print(f"{name:18} {row} {verdict}".rstrip(), flush=True)
    print(f"largest relative error {worst:.1e}, bound {arguments.bound:g}")
    return int(worst > arguments.bound)


def _crc(name: str) -> int:
    return zlib.crc32(name.encode())


if __name__ == "__main__":
    sys.exit(main())
