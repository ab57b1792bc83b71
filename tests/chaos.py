"""Kills processes at random twenty times in one run; its weights must equal those of an undisturbed run.

    make chaos
    python tests/chaos.py --kills 5 --seed 3

Starts a stack and trains one recipe twice on a tiny data set: undisturbed, then with one kill at a random
image of each of twenty equal parts of the run. Each kill is drawn at random: a worker by SIGKILL (as when
memory runs out) or SIGTERM (as when a node is preempted), the driver by SIGKILL or SIGTERM, MLflow, object
storage, or the driver after the newest checkpoint was truncated. Exits with 1 if weights, measured metrics or
logged losses differ.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trimesh

from mimic3d.config.recipes import get_recipe
from mimic3d_command import start_mimic3d
from mimic3d_platform import local, storage
from mimic3d_platform.console import Console
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.settings import DEFAULT_RUNS_URI, use_services
from mimic3d_platform.tracking import EXPERIMENT, find_run
from mimic3d_platform.tracking.server import client
from run_faults import kill_service, leave_ray, position, truncate_newest, wait_until, worker_processes

DATA = "s3://mimic3d/chaos"
RECIPE = "cars-demo"
BATCH = get_recipe(RECIPE).schedule.batch
IMAGES_PER_KILL = 64
# A killed service stays away until the run has advanced by OUTAGE_IMAGES (a checkpoint or two), for at least
# OUTAGE_S and, if the run waits for it, at most LONGEST_OUTAGE_S seconds.
OUTAGE_IMAGES, OUTAGE_S, LONGEST_OUTAGE_S = 24, 5.0, 60.0
KINDS = (
    "worker, kill -9",
    "worker, SIGTERM",
    "driver, kill -9",
    "driver, SIGTERM",
    "MLflow, kill -9",
    "object storage, kill -9",
    "checkpoint cut short, driver kill -9",
)


class Chaos:
    """One run of the recipe, whose command is started again whenever it was killed."""

    def __init__(self, home: Path, log: Path, total: int, checkpoint_nimg: int = 2 * BATCH) -> None:
        self.home, self.log, self.total = home, log, total
        self.stage1 = round(total * 2 / 3) // BATCH * BATCH
        overrides = {
            "schedule.stage1_kimg": self.stage1 / 1000,
            "schedule.stage2_kimg": (total - self.stage1) / 1000,
            "output.checkpoint_kimg": checkpoint_nimg / 1000,
            "output.sample_kimg": 8.0,
            "output.log_steps": 1,
            "output.metric_images": 16,
            "output.metric_identities": 2,
        }
        options = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
        self.arguments = ["train", RECIPE, "--data", DATA, "--workers", "2", *options]
        self.process: subprocess.Popen | None = None
        self.starts = 0

    def start(self, name: str) -> None:
        """Starts the command if it does not run."""
        if self.process is None or self.process.poll() is not None:
            self.starts += 1
            log = self.log / f"{name}-{self.starts:02d}.log"
            self.process = start_mimic3d(*self.arguments, "--name", name, log=log)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def finish(self, name: str) -> None:
        """Runs the command until it succeeds, three times at most."""
        for _ in range(3):
            self.start(name)
            if self.process.wait(3600) == 0:
                return
        raise SystemExit(f"the run {name} does not reach its end; its logs are in {self.log}")

    def reach(self, name: str, nimg: int) -> int:
        """Waits until the run has reached `nimg` images; returns its position."""
        while True:
            self.start(name)
            try:
                return wait_until(name, nimg, self.alive, timeout=1800)
            except AssertionError:
                if self.alive() or self.starts > 200:
                    raise
                if self.process.returncode == 0:
                    raise SystemExit(
                        f"the run {name} reached its end before {nimg} images could be waited for: the kills "
                        "took longer than the run, raise IMAGES_PER_KILL"
                    ) from None

    def disturb(self, kind: str, name: str, at: int, draw: random.Random) -> str:
        """Kills something of a run at `at` images; returns its description."""
        if kind.startswith("worker"):
            workers = worker_processes(self.home)
            if not workers:
                return "no worker was there"
            victim = draw.choice(workers)
            victim.kill() if kind.endswith("kill -9") else victim.terminate()
            return f"process {victim.pid}"
        if kind.startswith(("MLflow", "object storage")):
            return self.outage("mlflow" if kind.startswith("MLflow") else "s3", name, at)
        number = signal.SIGTERM if kind.endswith("SIGTERM") else signal.SIGKILL
        self.process.send_signal(number)
        self.process.wait(120)
        if kind.startswith("checkpoint"):
            return f"process {self.process.pid}, {truncate_newest(name)}"
        return f"process {self.process.pid}"

    def outage(self, service: str, name: str, at: int) -> str:
        """Kills a service, lets the run continue without it, and starts the service again."""
        started = time.monotonic()
        kill_service(self.home, service)
        while (away := time.monotonic() - started) < LONGEST_OUTAGE_S:
            if away > OUTAGE_S and (position(name) or 0) >= at + OUTAGE_IMAGES:
                break
            time.sleep(0.5)
        local.up(self.home, cpus=2)
        return f"away for {time.monotonic() - started:.0f} s"


def outcome(name: str) -> dict[str, object]:
    """The results of a finished run: weights, metrics and each logged loss at each step."""
    checkpoint = CheckpointStore(DEFAULT_RUNS_URI, name).all()[-1]
    experiment = client().get_experiment_by_name(EXPERIMENT).experiment_id
    parent = find_run(experiment, name)
    losses: dict[str, list[tuple[int, float]]] = {}
    for stage in (1, 2):
        run = find_run(experiment, f"{name}-stage{stage}", parent.info.run_id)
        for key in run.data.metrics:
            if key.startswith(("loss/", "gradient/")):
                history = client().get_metric_history(run.info.run_id, key)
                losses[f"{stage}/{key}"] = sorted((point.step, point.value) for point in history)
    progress = json.loads(storage.read_bytes(f"{checkpoint.uri}/progress.json"))
    weights = storage.read_bytes(f"{checkpoint.uri}/generator/generator.safetensors")
    return {
        "images": checkpoint.nimg,
        "weights": hashlib.sha256(weights).hexdigest(),
        "metrics": progress["metrics"],
        "losses": losses,
    }


def make_data(folder: Path) -> None:
    """Renders two coloured shapes: 32 images of 32²."""
    folder.mkdir()
    for index, mesh in enumerate([trimesh.creation.box((1.0, 0.4, 0.5)), trimesh.creation.icosphere(2)]):
        mesh.visual.face_colors = [200 - 90 * index, 60, 40 + 120 * index, 255]
        mesh.export(folder / f"{index}.ply")
    sizes = ("--colourings", 2, "--views", 8, "--resolution", 32, "--supersample", 2)
    process = start_mimic3d("data", "render", DATA, "--meshes", folder, *sizes, log=folder / "log.txt")
    if process.wait(600) != 0:
        raise SystemExit((folder / "log.txt").read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="m3d-chaos-", dir="/tmp"))
    os.environ["MIMIC3D_HOME"] = str(home)
    console, draw = Console(), random.Random(arguments.seed)
    total = (arguments.kills + 1) * IMAGES_PER_KILL
    rows = []
    try:
        local.up(home, cpus=2, on_progress=console.say)
        use_services()
        make_data(home / "meshes")
        chaos = Chaos(home, home, total)
        console.say(f"the undisturbed run: {total} images")
        started = time.monotonic()
        chaos.finish("steady")
        console.say(f"done in {time.monotonic() - started:.0f} s; now {arguments.kills} kills")
        chaos.process = None
        kinds = [KINDS[index % len(KINDS)] for index in range(arguments.kills)]
        draw.shuffle(kinds)
        for index, kind in enumerate(kinds):
            wanted = index * IMAGES_PER_KILL + draw.randrange(BATCH, IMAGES_PER_KILL)
            at = chaos.reach("disturbed", wanted)
            time.sleep(draw.random())
            what = chaos.disturb(kind, "disturbed", at, draw)
            rows.append((str(index + 1), kind, f"{at} images", what))
            console.say(f"{index + 1:2}. at {at} images: {kind} ({what})")
        chaos.finish("disturbed")
        results = {name: outcome(name) for name in ("steady", "disturbed")}
    finally:
        leave_ray()
        local.down(home)
        if "results" in locals():
            shutil.rmtree(home, ignore_errors=True)
        else:
            console.say(f"logs: {home}")
    console.table(("kill", "what", "when", "which"), rows)
    return report(console, results, chaos.starts)


def report(console: Console, results: dict[str, dict[str, object]], starts: int) -> int:
    """Prints the comparison; returns 0 if all is equal."""
    steady, disturbed = results["steady"], results["disturbed"]
    doubled = [key for key, points in disturbed["losses"].items() if len(points) != len(dict(points))]
    # The disturbed run logs one more line at each SIGTERM.
    missing = [
        key
        for key, points in steady["losses"].items()
        if not dict(points).items() <= dict(disturbed["losses"].get(key, [])).items()
    ]
    checks = {
        "images": steady["images"] == disturbed["images"],
        "weights (SHA-256)": steady["weights"] == disturbed["weights"],
        "measured metrics": steady["metrics"] == disturbed["metrics"],
        "losses and gradients, every line": not missing,
        "no line twice": not doubled,
    }
    console.table(("equal", ""), [(what, "yes" if held else "NO") for what, held in checks.items()])
    console.say(f"weights: {steady['weights']} and {disturbed['weights']}")
    console.say(f"the command was started {starts} times for both runs")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
