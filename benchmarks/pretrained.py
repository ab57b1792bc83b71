"""Trains a recipe from a folder of shards in one process, without Ray, MLflow or object storage.

    python -m benchmarks.pretrained --data cars-64 --weights WEIGHTS --out pretrained

For the models that come with the project: on a GPU, where its minutes are counted, or on a CPU, where it
takes hours. All images are decoded first and kept on the device. The run is resumed from the checkpoint in
its folder; `--minutes` ends it early, with a checkpoint. In the folder:

    checkpoint/    the training checkpoint, replaced every `--checkpoint-seconds`
    stage1/        the training checkpoint that ended stage 1
    samples/       PNG grids, latents by cameras, both branches
    snapshots/     generators' folders by images seen, one at each measurement
    log.jsonl      a JSON object a line: losses, speed, Fréchet distances
    export/        a generator's folder with the averaged generator and, in training.safetensors, the networks
                   that another training starts from (`--set start=…`), all in float16

Stages can be trained by calls of their own: `--set schedule.stage2_kimg=0`, then `--set start=…/export` and
`--set schedule.stage1_kimg=0`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mimic3d.checkpoints.file_names import TRAINING_NETWORKS
from mimic3d.checkpoints.generator_folder import save_weights
from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d.evaluation.frechet import FeatureStatistics
from mimic3d.evaluation.generated import frechet_by_branch, generated_images
from mimic3d.export.grid import render_grid
from mimic3d.export.latents import latents_of_seeds
from mimic3d.export.orbits import turntable
from mimic3d.features.extractor import FeatureExtractor
from mimic3d.features.registry import EXTRACTORS
from mimic3d.losses.perceptual import PerceptualDistance
from mimic3d.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mimic3d.training.local import LocalShards
from mimic3d.training.order import EpochOrder
from mimic3d.training.trainer import Trainer

PERCEPTUAL = ("lpips-vgg16", "hed-vgg16")
EXTRACTOR = "mobilenetv2"


class Run:
    """A training in a folder, from its checkpoint to the end of its time or of its schedule."""

    def __init__(
        self, config: Config, data: Path, weights: Path, out: Path, device: str, graphs: bool
    ) -> None:
        self.config, self.out, self.began = config, out, time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        self.shards = LocalShards(data)
        self.images = self.shards.decoded().to(device)
        self.order = EpochOrder(self.shards, config.seed)
        self.trainer = Trainer(config, perceptual_distance(weights), device, graphs=graphs)
        self.progress = Progress()
        if (out / "checkpoint").is_dir():
            self.progress = load_checkpoint(out / "checkpoint", self.trainer)
        elif config.start:
            self.trainer.start_from(config.start)
        self.extractor: FeatureExtractor | None = None
        if (weights / f"{EXTRACTOR}.safetensors").is_file():
            found = load_file(weights / f"{EXTRACTOR}.safetensors")
            found = {name: x.float() if x.is_floating_point() else x for name, x in found.items()}
            self.extractor = EXTRACTORS[EXTRACTOR](found).to(device)
        self._reals: FeatureStatistics | None = None

    def log(self, values: dict[str, object]) -> None:
        """Appends a line to the log and prints it."""
        line = json.dumps({"nimg": self.trainer.nimg, "stage": self.trainer.stage, **values})
        with (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def train(self, seconds: float, checkpoint_seconds: float, metric_images: int) -> None:
        """Steps until the schedule or the time is over."""
        trainer, config, batch = self.trainer, self.config, self.config.schedule.batch
        self.log({"event": "begin", "set_up_seconds": round(time.monotonic() - self.began, 1)})
        written = since = time.monotonic()
        steps = 0
        while not trainer.finished and time.monotonic() - self.began < seconds:
            rows = torch.from_numpy(self.order.rows(trainer.nimg, batch))
            stage = trainer.stage
            found = trainer.step(
                self.images[rows.to(self.images.device)], self.shards.cameras[rows], self.shards.cameras
            )
            steps += 1
            if steps % config.output.log_steps == 0:
                values: dict[str, object] = {name: round(float(x), 5) for name, x in found.items()}
                now = time.monotonic()
                rate = config.output.log_steps * batch / (now - since)
                self.progress.seconds, since = self.progress.seconds + now - since, now
                self.log({"images_per_second": round(rate, 1)} | values)
            if due(trainer.nimg, config.output.sample_kimg, batch) or trainer.stage != stage:
                self.picture()
            often = config.output.metric_kimg
            if trainer.stage != stage or (often is not None and due(trainer.nimg, often, batch)):
                self.snapshot()
                self.measure(metric_images)
            if trainer.stage != stage:
                self.save("stage1")
            if time.monotonic() - written > checkpoint_seconds:
                self.save("checkpoint")
                written = time.monotonic()
            if steps % config.output.log_steps == 0:
                since = max(since, written)
        self.save("checkpoint")
        self.export()
        self.snapshot()
        self.picture()
        self.measure(metric_images)
        self.log({"event": "end", "finished": trainer.finished})

    def save(self, name: str) -> None:
        """Writes a checkpoint beside the old one of this name, then takes its place."""
        partial = self.out / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.progress.nimg = self.trainer.nimg
        save_checkpoint(partial, self.trainer, self.progress)
        shutil.rmtree(self.out / name, ignore_errors=True)
        partial.replace(self.out / name)

    def export(self) -> None:
        """Writes the averaged generator and the networks in training as float16."""
        folder, trainer = self.out / "export", self.trainer
        save_weights(folder, half(trainer.ema), self.config)
        parts = {"generator": trainer.generator, "dual": trainer.dual, "patch": trainer.patch}
        tensors = {f"{part}.{key}": x for part, network in parts.items() for key, x in half(network).items()}
        save_file(tensors, folder / TRAINING_NETWORKS)

    def snapshot(self) -> None:
        """Writes the averaged generator as it is now."""
        folder = self.out / "snapshots" / f"{self.trainer.nimg:08d}"
        save_weights(folder, half(self.trainer.ema), self.config)

    @torch.no_grad()
    def picture(self) -> None:
        """Draws eight identities from four sides by the averaged generator."""
        ema, device = self.trainer.ema, self.trainer.device
        cameras = turntable(self.config.camera, 4).to(device)
        z = latents_of_seeds(self.config.model, range(8)).to(device)
        w = ema.mapping(z, cameras[:1].expand(len(z), -1))
        branches = ema.branches if self.trainer.stage == 2 else ("2d",)
        (self.out / "samples").mkdir(exist_ok=True)
        grid = render_grid(ema, w, cameras, branches=branches, reals=self.images[:8])
        grid.save(self.out / "samples" / f"{self.trainer.nimg:08d}.png")

    @torch.no_grad()
    def measure(self, count: int) -> None:
        """Logs the Fréchet distance of each branch that has been trained."""
        if self.extractor is None or count == 0:
            return
        if self._reals is None:
            batches = (self.extractor(part) for part in self.images.split(256))
            self._reals = FeatureStatistics.of(batches, self.extractor.dim)
        ema = self.trainer.ema
        branches = ema.branches if self.trainer.stage == 2 else ("2d",)
        images = generated_images(
            ema, self.shards.cameras, range(count), seed=0, branches=branches, batch=64, max_points=2**24
        )
        found = frechet_by_branch(self.extractor, images, branches, self._reals)
        self.log({name: round(value, 4) for name, value in found.items()})


def half(network: nn.Module) -> dict[str, Tensor]:
    """The network's state on the CPU, floating-point numbers in float16."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return {name: x.half() if x.is_floating_point() else x for name, x in state.items()}


def due(nimg: int, kimg: float, batch: int) -> bool:
    """True if the step that ended at `nimg` images reached or passed a multiple of `kimg` thousand."""
    each = round(kimg * 1000)
    return nimg // each > (nimg - batch) // each


def perceptual_distance(weights: Path) -> nn.Module:
    """LPIPS, or its stand-in, on the weights that are in a folder.

    Raises:
        ValueError: the folder has neither's.
    """
    for name in PERCEPTUAL:
        if (weights / f"{name}.safetensors").is_file():
            return PerceptualDistance.from_file(weights / f"{name}.safetensors", name)
    raise ValueError(
        f"{weights} holds no weights of {' or '.join(PERCEPTUAL)}: get them by `mimic3d weights --stage`"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipe", default="cars-small")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="folder of feature networks' safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eager", action="store_true", help="launch kernels one by one on a GPU, too")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    parser.add_argument("--metric-images", type=int, default=2000)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    assignments: dict[str, str] = {}
    for each in arguments.set:
        key, _, value = each.partition("=")
        assignments[key] = value
    config = override(get_recipe(arguments.recipe), assignments)
    torch.backends.cudnn.benchmark = True
    graphs = arguments.device.startswith("cuda") and not arguments.eager
    run = Run(config, arguments.data, arguments.weights, arguments.out, arguments.device, graphs)
    run.train(arguments.minutes * 60, arguments.checkpoint_seconds, arguments.metric_images)


if __name__ == "__main__":
    main()
