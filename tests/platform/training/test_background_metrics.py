"""Metrics that are measured beside the training are those that its workers would have measured."""

import json
import time
from pathlib import Path

import pytest
import torch

from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d.networks.generator import Generator, build_generator
from mimic3d.training.checkpoint import Progress
from mimic3d_command import mimic3d, start_mimic3d
from mimic3d_platform import local, storage
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.cluster.tasks import BackgroundTask
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.evaluation.metrics import Evaluator
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.tracking.staged_run import StagedRun
from mimic3d_platform.training import background_metrics
from mimic3d_platform.training.background_metrics import FOLDER, BackgroundMetrics
from mimic3d_platform.training.run_identity import RunOrigin, TrainingRun
from tiny_sweeps import render_box

pytestmark = pytest.mark.slow
PATIENCE_S = 900
CPU = torch.device("cpu")
FRECHET = "fd_efficientnetlite2mid/3d"
SETTINGS = {
    "schedule.stage1_kimg": 0.064,
    "schedule.stage2_kimg": 0.032,
    "output.checkpoint_kimg": 0.016,
    "output.metric_kimg": 0.016,
    "output.sample_kimg": 0.096,
    "output.metric_images": 16,
    "output.metric_identities": 2,
}


@pytest.fixture(scope="module")
def data(stack: local.StackStatus, tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_box(tmp_path_factory.mktemp("meshes"))


@pytest.fixture
def run(data: str, tmp_path: Path) -> TrainingRun:
    config = override(get_recipe("cars-demo"), SETTINGS | {"data.uri": data})
    origin = RunOrigin("", "", "", feature_weights.best_available("frechet"))
    return TrainingRun(config, "run", str(tmp_path), origin, StagedRun("", {}), [])


def generator_of(config: Config) -> Generator:
    torch.manual_seed(0)
    return build_generator(config).eval()


def measured_here(run: TrainingRun) -> dict[str, float]:
    evaluator = Evaluator(run.config, run.origin.frechet, run.runs_uri)
    return evaluator.measure(generator_of(run.config))


def collected(metrics: BackgroundMetrics) -> tuple[int, dict[str, float]]:
    deadline = time.monotonic() + PATIENCE_S
    while (found := metrics.collect(32)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_the_metrics_are_those_that_the_workers_measure(run: TrainingRun) -> None:
    metrics = BackgroundMetrics(run, CPU, print)
    generator = generator_of(run.config)
    assert metrics.start(16, generator)
    assert not metrics.start(32, generator)
    with torch.no_grad():  # The training goes on.
        for parameter in generator.parameters():
            parameter.add_(1)
    assert collected(metrics) == (16, pytest.approx(measured_here(run), rel=1e-6))
    assert metrics.collect(32, wait=True) is None


def test_a_measurement_that_was_cut_short_is_made_again(run: TrainingRun) -> None:
    cut = BackgroundMetrics(run, CPU, print)
    cut.start(16, generator_of(run.config))
    cut.store()
    [stored] = storage.list_files(f"{run.runs_uri}/run/{FOLDER}")
    resumed = BackgroundMetrics(run, CPU, print)
    resumed.resume(Progress(32))
    assert collected(resumed) == (16, pytest.approx(measured_here(run), rel=1e-6))
    resumed.checkpoint_stored(24)
    assert storage.exists(stored)
    resumed.checkpoint_stored(32)
    assert not storage.exists(stored)


def test_a_checkpoint_waits_until_the_generator_is_stored(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str, content: bytes) -> None:
        raise UserError("storage does not answer")

    write = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", refuse)
    metrics = BackgroundMetrics(run, CPU, print)
    metrics.start(16, generator_of(run.config))
    for _ in range(2):
        with pytest.raises(UserError, match="does not answer"):
            metrics.store()
    monkeypatch.setattr(storage, "write_bytes", write)
    metrics.store()
    assert storage.list_files(f"{run.runs_uri}/run/{FOLDER}") != []
    collected(metrics)


@pytest.mark.parametrize("progress", [Progress(8), Progress(32, {16: {FRECHET: 1.0}})])
def test_a_measurement_of_later_images_or_that_a_checkpoint_holds_is_forgotten(
    run: TrainingRun, progress: Progress
) -> None:
    cut = BackgroundMetrics(run, CPU, print)
    cut.start(16, generator_of(run.config))
    cut.store()
    resumed = BackgroundMetrics(run, CPU, print)
    resumed.resume(progress)
    assert resumed.collect(32, wait=True) is None
    assert storage.list_files(f"{run.runs_uri}/run/{FOLDER}") == []


def test_at_the_end_a_measurement_that_finds_no_processor_is_made_by_the_worker(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    join_ray()
    import ray

    class Holder:
        def held(self) -> bool:
            return True

    monkeypatch.setattr(background_metrics, "END_PATIENCE_S", 1.0)
    holders = [ray.remote(num_cpus=1)(Holder).remote() for _ in range(2)]
    try:
        assert all(ray.get([holder.held.remote() for holder in holders]))
        metrics = BackgroundMetrics(run, CPU, print)
        metrics.start(16, generator_of(run.config))
        assert metrics.collect(32, wait=True) == (16, pytest.approx(measured_here(run), rel=1e-6))
    finally:
        for holder in holders:
            ray.kill(holder)


def test_a_measurement_that_ray_loses_is_made_by_the_worker_and_noted(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(task: BackgroundTask) -> None:
        raise UserError("Ray lost a task (its node died)")

    notes: list[str] = []
    metrics = BackgroundMetrics(run, CPU, notes.append)
    metrics.start(16, generator_of(run.config))
    monkeypatch.setattr(BackgroundTask, "result", lost)
    assert collected(metrics) == (16, pytest.approx(measured_here(run), rel=1e-6))
    [note] = notes
    assert note.startswith("the metrics of 16 images are measured by the training's workers: Ray lost a task")


@pytest.mark.timeout(3600)
def test_a_run_that_was_killed_has_the_metrics_of_one_whose_workers_measure(
    data: str, tmp_path: Path
) -> None:
    sets = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    arguments = ["train", "cars-demo", "--data", data, "--workers", "1", *sets]
    log = tmp_path / "killed.log"
    killed = start_mimic3d(*arguments, "--name", "beside", log=log)
    run = f"{DEFAULT_RUNS_URI}/beside"
    deadline = time.monotonic() + PATIENCE_S
    while not [
        uri for uri in storage.list_files(f"{run}/{FOLDER}") if not uri.endswith("/000000000.safetensors")
    ]:
        assert killed.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    for name, more in (("beside", ()), ("waiting", ("--set", f"output.keep_best={FRECHET}"))):
        ended = mimic3d(*arguments, *more, "--name", name, timeout=PATIENCE_S)
        assert ended.returncode == 0, ended.stderr
    beside, waiting = (
        json.loads(storage.read_bytes(f"{DEFAULT_RUNS_URI}/{name}/result.json"))["metrics"]
        for name in ("beside", "waiting")
    )
    assert beside.keys() == waiting.keys() == {str(nimg) for nimg in range(0, 97, 16)}
    for nimg, metrics in waiting.items():
        assert beside[nimg] == pytest.approx(metrics, rel=1e-4), nimg
    assert storage.list_files(f"{run}/{FOLDER}") == []
    lines = [
        json.loads(line)
        for uri in storage.list_files(f"{run}/metrics", suffix=".jsonl")
        for line in storage.read_bytes(uri).decode().splitlines()
    ]
    steps = [line.get("step", line["nimg"]) for line in lines if FRECHET in line.get("metrics", {})]
    assert sorted(steps) == list(range(0, 97, 16))
    assert any("step" in line for line in lines)
