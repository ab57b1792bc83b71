"""Tests, timings and a profile on a machine with a GPU, within minutes.

    python -m benchmarks.gpu_battery --out gpu-battery --seconds 240

In order of value: the tests of tests/mimic3d/test_gpu.py; the speed of memory and of matrix products; seconds
a step and memory of both stages of `cars-small` in several ways; a profile of its kernels; other recipes at
the batch that one of eight GPUs has. It needs PyTorch and pytest alone, no network, no data: images and the
perceptual network's weights are random. Each part begins only while there is time for it, and what is
measured is written at once: tests.log, timings.jsonl, profile.txt.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d.losses.perceptual import VGG16_BLOCKS, PerceptualDistance
from mimic3d.networks.precision import allow_tf32
from mimic3d.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
# The name of a variant, its overrides of the recipe's config, and whether phases are recorded as graphs.
Variant = tuple[str, dict[str, object], bool]
_32, _64, _TF32 = {"schedule.batch": 32}, {"schedule.batch": 64}, {"model.allow_tf32": True}
_BF16 = {"model.precision": "bf16"}
VARIANTS: list[Variant] = [
    ("eager 32", _32, False),
    ("graphs 32", _32, True),
    ("graphs 32 tf32", _32 | _TF32, True),
    ("graphs 32 tf32 shared fakes", _32 | _TF32 | {"imitation.share_fakes": True}, True),
    ("graphs 32 tf32 bf16", _32 | _TF32 | _BF16, True),
    ("graphs 64 tf32", _64 | _TF32, True),
    ("graphs 32 tf32 planes of 32", _32 | _TF32 | {"model.triplane_resolution": 32}, True),
    ("graphs 32 mixed", _32 | {"model.precision": "mixed"}, True),
]
RECIPES = [("cars64", 32), ("cars128", 4), ("ffhq256", 4), ("ffhq512", 4)]


class Battery:
    """The parts, each of which appends to files in a folder until the time is over."""

    def __init__(self, out: Path, seconds: float, device: str, tiny: bool) -> None:
        self.out, self.device, self.tiny = out, device, tiny
        self.end = time.monotonic() + seconds
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def note(self, values: dict[str, object]) -> None:
        """Appends what was measured to timings.jsonl, and prints it."""
        line = json.dumps(values)
        with (self.out / "timings.jsonl").open("a") as file:
            file.write(line + "\n")
        print(f"[{self.left:4.0f} s left] {line}", flush=True)

    def tests(self, limit: float) -> None:
        command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q", "-rf"]
        command += ["--tb=short", "tests/mimic3d/test_gpu.py"]
        began = time.monotonic()
        try:
            found = subprocess.run(
                command, cwd=ROOT, timeout=limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            text = found.stdout
        except subprocess.TimeoutExpired as error:
            text = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else str(error.stdout)
            text += "\ntimed out"
        (self.out / "tests.log").write_text(text, encoding="utf-8")
        print(text[-3000:], flush=True)
        self.note({"part": "tests", "seconds": round(time.monotonic() - began, 1)})

    def ceilings(self) -> None:
        """Bytes a second of a copy, and operations a second of matrix products in three precisions."""
        if self.device == "cpu":
            return
        source = torch.randn(2**28, device=self.device)
        target = torch.empty_like(source)
        found: dict[str, object] = {"copy_TB/s": 2 * 4 * 2**28 / timed(lambda: target.copy_(source)) / 1e12}
        for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
            allow_tf32(name == "tf32")
            a, b = (torch.randn(8192, 8192, device=self.device, dtype=dtype) for _ in range(2))
            found[f"{name}_TFLOP/s"] = 2 * 8192**3 / timed(lambda a=a, b=b: a @ b) / 1e12
        allow_tf32(False)
        self.note({"part": "ceilings", **found})

    def variant(self, recipe: str, variant: Variant, steps: int, warm: int) -> None:
        """Seconds a step of both stages, and memory."""
        name, changes, graphs = variant
        config = self._config(recipe, changes)
        try:
            trainer = self._trainer(config, graphs)
            for stage in (1, 2):
                if stage == 2:
                    trainer.nimg = config.stage1_nimg
                found = self._stage(trainer, steps, warm)
                self.note({"recipe": recipe, "variant": name, "stage": stage} | found)
        except (RuntimeError, ValueError) as error:
            self.note({"recipe": recipe, "variant": name, "error": str(error)[:500]})
        trainer = None
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def _stage(self, trainer: Trainer, steps: int, warm: int) -> dict[str, object]:
        step = stepper(trainer)
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        for _ in range(warm):
            step()
        self._wait()
        warmed = time.monotonic()
        for _ in range(steps):
            step()
        enqueued = time.monotonic()
        self._wait()
        seconds = (time.monotonic() - warmed) / steps
        found: dict[str, object] = {
            "ms_a_step": round(seconds * 1000, 2),
            "images_a_second": round(trainer.config.schedule.batch / seconds, 1),
            "cpu_ms_a_step": round((enqueued - warmed) / steps * 1000, 2),
            "warm_up_s": round(warmed - began, 1),
        }
        if self.device != "cpu":
            found["peak_GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            found["reserved_GiB"] = round(torch.cuda.memory_reserved() / 2**30, 2)
        return found

    def profile(self, changes: dict[str, object]) -> None:
        """The kernels of two eager steps of each stage by time, and the share of time without any."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device != "cpu":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        config = self._config("cars-small", changes)
        trainer = self._trainer(config, False)
        for stage in (1, 2):
            if stage == 2:
                trainer.nimg = config.stage1_nimg
            step = stepper(trainer)
            for _ in range(4):
                step()
            self._wait()
            with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
                began = time.monotonic()
                for _ in range(2):
                    step()
                self._wait()
                wall = time.monotonic() - began
            key = "self_cpu_time_total" if self.device == "cpu" else "self_device_time_total"
            kernels = profiler.key_averages()
            busy = sum(getattr(each, key) for each in kernels if self._on_device(each)) / 1e6
            launches = sum(each.count for each in kernels if self._on_device(each))
            self.note(
                {
                    "part": "profile",
                    "stage": stage,
                    "ms_a_step": round(wall / 2 * 1000, 2),
                    "busy_ms_a_step": round(busy / 2 * 1000, 2),
                    "kernels_a_step": launches // 2,
                }
            )
            with (self.out / "profile.txt").open("a") as file:
                file.write(f"stage {stage}, by kernel\n")
                file.write(profiler.key_averages().table(sort_by=key, row_limit=45, max_name_column_width=90))
                file.write(f"\nstage {stage}, by operation and shapes\n")
                by_shape = profiler.key_averages(group_by_input_shape=True)
                file.write(by_shape.table(sort_by=key, row_limit=45, max_name_column_width=60))

    def _on_device(self, event: torch.autograd.profiler_util.FunctionEventAvg) -> bool:
        return self.device == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA

    def _config(self, recipe: str, changes: dict[str, object]) -> Config:
        base = {"schedule.blur_sigma": 0, "schedule.stage1_kimg": 1.28e6, "schedule.stage2_kimg": 1.28e6}
        base |= {"output.checkpoint_kimg": 1.28, "output.sample_kimg": 1.28, "schedule.cooldown_kimg": 0}
        if self.tiny:
            base |= {"model.channel_max": 8, "model.discriminator_channel_max": 8, "model.plane_channels": 8}
            changes = {"schedule.batch": 4} | {k: v for k, v in changes.items() if k != "schedule.batch"}
        return override(get_recipe(recipe), base | changes)

    def _trainer(self, config: Config, graphs: bool) -> Trainer:
        return Trainer(config, random_perceptual(), self.device, graphs=graphs and self.device != "cpu")

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def run(self) -> None:
        self.tests(min(self.left, 100.0))
        self.ceilings()
        steps, warm = (2, 1) if self.tiny else (64, 66)
        for variant in VARIANTS:
            if self.left > 15:
                self.variant("cars-small", variant, steps, warm if variant[2] else min(warm, 17))
            if variant[0] == "graphs 32 tf32" and self.left > 15:
                self.profile(variant[1])
        for recipe, batch in RECIPES:
            for precision in ("fp32", "mixed"):
                if self.left > 20 and (self.device != "cpu" or precision == "fp32"):
                    changes: dict[str, object] = {"schedule.batch": batch, "model.precision": precision}
                    self.variant(recipe, (f"eager {batch} {precision}", changes, False), 8, 3)


def stepper(trainer: Trainer) -> Callable[[], dict[str, Tensor]]:
    """A function that takes a step on random images."""
    model, batch = trainer.config.model, trainer.config.schedule.batch
    yaw = torch.linspace(-3, 3, 1024)
    labels = look_at(on_sphere(yaw, 0.3 + 0 * yaw, trainer.config.camera.radius), focal=1.4)
    shape = (batch, 3, model.image_resolution, model.image_resolution)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=trainer.device)
    return lambda: trainer.step(images, labels[:batch], labels)


def timed(work: Callable[[], object], repeat: int = 20) -> float:
    """Median seconds of one call on the GPU."""
    times = []
    for _ in range(repeat + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return sorted(times[3:])[repeat // 2]


def random_perceptual() -> nn.Module:
    """LPIPS's network with random weights: they take as long as trained ones."""
    weights, index, width = {}, 0, 3
    for block in VGG16_BLOCKS:
        for out in block:
            weights[f"features.{index}.weight"] = torch.randn(out, width, 3, 3) * (2 / (9 * width)) ** 0.5
            weights[f"features.{index}.bias"] = torch.zeros(out)
            index, width = index + 2, out
        index += 1
    return PerceptualDistance(weights, "hed-vgg16")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="networks and batches of a CPU's size")
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    Battery(arguments.out, arguments.seconds, arguments.device, arguments.tiny).run()


if __name__ == "__main__":
    main()
