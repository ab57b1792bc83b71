"""On a GPU the method computes what it computes on a CPU; skipped where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import (
    Config,
    ConfigError,
    ImitationConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RegularizationConfig,
    RenderingConfig,
    ScheduleConfig,
    override,
)
from mimic3d.losses.adversarial import r1_penalty
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator
from mimic3d.networks.generator import build_generator
from mimic3d.rendering.patches import patch_uv
from mimic3d.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mimic3d.training.optimizers import lazy_adam
from mimic3d.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

STEPS = 8  # of each stage, so that every phase runs often enough to be recorded as a graph
CONFIG = Config(
    model=ModelConfig(32, 8, 8, 8, 8, 2, 64, 8, 128, 8, 16, (8, 8)),
    rendering=RenderingConfig(1.0, 2.4, 1.2, 4, 4, True),
    imitation=ImitationConfig(16, 0.5),
    regularization=RegularizationConfig(density_points=16, r1_interval=2, density_interval=2),
    schedule=ScheduleConfig(
        batch=4,
        stage1_kimg=4 * STEPS / 1000,
        stage2_kimg=4 * STEPS / 1000,
        blur_sigma=1.5,
        blur_kimg=0.008,
    ),
    output=OutputConfig(checkpoint_kimg=0.004, sample_kimg=0.004),
)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Rounding is then far below what a wrong result would differ by; TF32 is off, as in training."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    torch.backends.cudnn.allow_tf32 = tf32


class DrawnOnCpu(TorchFunctionMode):
    """Random numbers are drawn on the CPU and then moved, so that both devices have the same."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.rand, torch.randn):
            device = kwargs.pop("device", None)
            return function(*args, **kwargs).to(device)
        if function is torch.randn_like:
            return torch.randn(args[0].shape, dtype=args[0].dtype).to(args[0].device)
        return function(*args, **kwargs)


class MeanAbsolute(nn.Module):
    """A distance of images that needs no weights."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3))


def labels(count: int = 12) -> Tensor:
    yaw = torch.linspace(0, 6, count)
    return look_at(on_sphere(yaw, yaw / 10, 1.7), focal=1.1).to(torch.get_default_dtype())


def train(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """Steps on random reals that depend on `nimg` alone; returns what each logs."""
    logs = []
    for _ in range(steps):
        source = torch.Generator().manual_seed(trainer.nimg)
        images = torch.randint(0, 256, (4, 3, 32, 32), generator=source, dtype=torch.uint8)
        logs.append({k: float(v) for k, v in trainer.step(images, labels()[:4], labels()).items()})
    return logs


def weights(trainer: Trainer) -> Tensor:
    """All weights and averages as one vector on the CPU."""
    networks = (trainer.generator, trainer.dual, trainer.patch, trainer.ema)
    return torch.cat([value.flatten().cpu() for part in networks for value in part.state_dict().values()])


def distance(found: Tensor, reference: Tensor) -> float:
    return float((found.cpu().double() - reference.cpu().double()).norm() / reference.double().norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
def test_both_branches_and_their_gradients_agree_with_the_cpus(dtype: torch.dtype, tolerance: float) -> None:
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    reference = build_generator(CONFIG)
    z, camera = torch.randn(2, 8), labels()[:2]
    uv = patch_uv(torch.tensor([[3, 5], [0, 16]]), 16, 32)
    found = {}
    for device in ("cpu", "cuda"):
        generator = build_generator(CONFIG).to(device, memory_format=torch.channels_last)
        generator.load_state_dict(reference.state_dict())
        w = generator.mapping(z.to(device), camera.to(device))
        planes = generator.planes(w)
        image = generator.branch_2d(planes, w, camera.to(device)).image
        patch = generator.branch_3d(planes, camera.to(device), uv.to(device)).features
        (image.square().mean() + patch.square().mean()).backward()
        gradients = {n: p.grad for n, p in generator.named_parameters() if p.grad is not None}
        gradient = torch.cat([gradients[n].flatten() for n in sorted(gradients)])
        found[device] = planes.coarse, planes.detail, image, patch, gradient
    for on_gpu, on_cpu in zip(found["cuda"], found["cpu"], strict=True):
        assert distance(on_gpu.detach(), on_cpu.detach()) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
def test_discriminators_and_r1_agree_with_the_cpus(dtype: torch.dtype, tolerance: float) -> None:
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    dual, patch = DualDiscriminator(32, 128, 8), PatchDiscriminator(16, 128, 8)
    image, raw, small = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 8, 8), torch.randn(4, 3, 16, 16)
    found: dict[str, list[Tensor]] = {}
    for device in ("cpu", "cuda"):
        found[device] = []
        for network, inputs in ((dual, (image, raw)), (patch, (small,))):
            network = network.to(device)
            network.zero_grad()
            given = [each.to(device).requires_grad_() for each in inputs]
            logits = network(*given, labels()[:4].to(device)) if network is dual else network(*given)
            penalty = r1_penalty(logits, given)
            (penalty.mean() + logits.square().mean()).backward()
            gradients = [p.grad.flatten().clone() for p in network.parameters() if p.grad is not None]
            found[device] += [logits.detach(), penalty.detach(), torch.cat(gradients)]
    for on_gpu, on_cpu in zip(found["cuda"], found["cpu"], strict=True):
        assert distance(on_gpu, on_cpu) < tolerance


@pytest.mark.parametrize("mode", ["none", "ada"])
def test_a_training_of_both_stages_agrees_with_the_cpus(mode: str) -> None:
    config = override(CONFIG, {"augmentation.mode": mode, "augmentation.kimg": 0.1})
    with DrawnOnCpu():
        on_cpu, on_gpu = (Trainer(config, MeanAbsolute(), device) for device in ("cpu", "cuda"))
        torch.testing.assert_close(weights(on_gpu), weights(on_cpu), rtol=0, atol=0)
        logs = [train(trainer, 2 * STEPS) for trainer in (on_gpu, on_cpu)]
    for found, expected in zip(*logs, strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert distance(weights(on_gpu), weights(on_cpu)) < 1e-7


def test_graphs_change_no_result() -> None:
    eager, recorded = (Trainer(CONFIG, MeanAbsolute(), "cuda", graphs=graphs) for graphs in (False, True))
    logs = [train(trainer, 2 * STEPS) for trainer in (recorded, eager)]
    for found, expected in zip(*logs, strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert distance(weights(recorded), weights(eager)) < 1e-7


@pytest.mark.parametrize("change", [{"schedule.accumulate": 2}, {"augmentation.mode": "ada"}])
def test_graphs_take_a_batch_whole_and_without_augmentation(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="CUDA graphs need"):
        Trainer(override(CONFIG, change), MeanAbsolute(), "cuda", graphs=True)


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = Trainer(CONFIG, MeanAbsolute(), "cuda")
    train(whole, STEPS + 3)
    before = Trainer(CONFIG, MeanAbsolute(), "cuda", graphs=True)
    train(before, STEPS + 1)
    save_checkpoint(tmp_path / "checkpoint", before, Progress(before.nimg))
    after = Trainer(CONFIG, MeanAbsolute(), "cuda", graphs=True)
    load_checkpoint(tmp_path / "checkpoint", after)
    train(after, 2)
    assert after.nimg == whole.nimg
    assert distance(weights(after), weights(whole)) < 1e-7


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision", ["mixed", "bf16"])
def test_half_precision_trains(precision: str, graphs: bool) -> None:
    torch.set_default_dtype(torch.float32)
    config = override(CONFIG, {"model.precision": precision})
    trainer = Trainer(config, MeanAbsolute(), "cuda", graphs=graphs)
    before = weights(trainer)
    logs = train(trainer, 2 * STEPS)
    assert all(abs(value) < 1e3 for log in logs for value in log.values())
    assert weights(trainer).isfinite().all() and distance(weights(trainer), before) > 1e-3


def test_fused_adam_takes_the_same_steps_as_the_plain_one() -> None:
    torch.manual_seed(0)
    settings = OptimizerConfig()
    networks = [nn.Conv2d(8, 16, 3).to("cuda", memory_format=torch.channels_last) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    fused = lazy_adam([networks[0]], 0.002, settings, 16)
    group = fused.param_groups[0]
    plain = torch.optim.Adam(networks[1].parameters(), lr=group["lr"], betas=group["betas"], eps=group["eps"])
    for _ in range(5):
        x = torch.randn(2, 8, 6, 6, device="cuda")
        for network, optimizer in zip(networks, (fused, plain), strict=True):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)
