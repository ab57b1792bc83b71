"""A training on two Ray workers, through the command: stopped in every way, resumed, registered, pulled.

One tiny run is shared by all tests: its disk fills at the first checkpoint, its driver is killed, its newest
checkpoint is truncated, MLflow is stopped and meanwhile a worker killed, another worker and then the driver
receive SIGTERM, and then the run resumes to its end, though object storage does not answer as a stage ends.
Another run of the same config is never disturbed.
"""

import contextlib
import hashlib
import io
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
import yaml

from leaked_secrets import assert_no_secret_leaked
from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d.config import Config, fingerprint, flatten, to_dict
from mimic3d_command import error_of, mimic3d, start_mimic3d
from mimic3d_platform import local, storage, tracking
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.tracking import EXPERIMENT
from mimic3d_platform.tracking.server import client
from mimic3d_platform.training.config_from_command import resolve_config
from run_faults import kill_service, truncate_newest, wait_until, worker_processes

# The shared runs are the set-up of the first test.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RECIPE, MODEL = "cars-demo", "cars-test"
STAGE1, TOTAL = 160, 224
OVERRIDES = {
    "schedule.stage1_kimg": 0.16,
    "schedule.stage2_kimg": 0.064,
    "output.checkpoint_kimg": 0.032,
    "output.sample_kimg": 0.08,
    "output.log_steps": 2,
    "output.metric_images": 16,
    "output.metric_identities": 2,
}
MOMENTS = (0, STAGE1, TOTAL)
# Named after what is measured: a stand-in for the 2015 Inception never bears the name FID.
MEASURES = ("fd_efficientnetlite2mid", "warp_detail", "warp_psnr", "warp_share")
TINY_DISK = "size=1m"
# Idle, none of these waits is longer than 20 s.
PATIENCE_S = 900


@dataclass(frozen=True)
class Story:
    """What happened to the two runs."""

    config: Config
    arguments: list[str]
    disk_full: subprocess.CompletedProcess | None
    """The command whose disk was full; None where this user may not mount a disk to fill."""
    truncated: str
    """The name of the checkpoint that was truncated."""
    disturbed: str
    """What the command printed while MLflow, its workers, then the command itself were ended."""
    stored_without_mlflow: int
    """The images of a checkpoint that was stored while MLflow did not answer."""
    told: dict[str, tuple[int, int]]
    """The images of the run when a worker, and when its driver, received SIGTERM, and those of the checkpoint
    that followed."""
    in_time: bool
    """Whether the workers stored it before the driver stopped waiting."""
    resumed: str
    """What the command printed that resumed to the end."""
    steady: subprocess.CompletedProcess
    results: dict[str, dict[str, Any]]
    """By the run's name, its result.json."""


@pytest.fixture(scope="module")
def story(stack: local.StackStatus, own_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("training")
    (root / "meshes").mkdir()
    for index, mesh in enumerate([trimesh.creation.box((1.0, 0.4, 0.5)), trimesh.creation.icosphere(2)]):
        mesh.visual.face_colors = [200 - 90 * index, 60, 40 + 120 * index, 255]
        mesh.export(root / "meshes" / f"{index}.ply")
    data = f"s3://mimic3d/test-{root.name}"
    sizes = ("--colourings", 2, "--views", 8, "--resolution", 32, "--supersample", 2)
    rendered = mimic3d("data", "render", data, "--meshes", root / "meshes", *sizes)
    assert rendered.returncode == 0, rendered.stderr

    assignments = [f"{key}={value}" for key, value in OVERRIDES.items()]
    options = [part for assignment in assignments for part in ("--set", assignment)]
    arguments = ["train", RECIPE, "--data", data, "--workers", "2", *options]
    disk_full = None
    for purpose in ("perceptual", "frechet"):
        feature_weights.best_available(purpose)  # Fetches the networks now, while there is room for them.
    with tiny_disk(root / "disk") as disk:
        if disk is not None:
            disk_full = mimic3d(*arguments, "--name", "stopped", TMPDIR=str(disk), timeout=PATIENCE_S)
    stopped = [*arguments, "--name", "stopped"]
    kill_after_a_checkpoint(stopped, root / "killed.log")
    truncated = truncate_newest("stopped")
    stored_without_mlflow, told, in_time = disturb(stopped, own_home, truncated, root / "disturbed.log")
    register = ("--register", MODEL, "--alias", "champion")
    finish_while_storage_is_cut([*stopped, *register], own_home, root / "resumed.log")
    steady = mimic3d(*arguments, "--name", "steady", timeout=PATIENCE_S)
    assert steady.returncode == 0, steady.stderr
    results = {
        name: yaml.safe_load(storage.read_bytes(f"{DEFAULT_RUNS_URI}/{name}/result.json"))
        for name in ("stopped", "steady")
    }
    return Story(
        config=resolve_config(RECIPE, data, assignments),
        arguments=arguments,
        disk_full=disk_full,
        truncated=truncated,
        disturbed=(root / "disturbed.log").read_text(encoding="utf-8"),
        stored_without_mlflow=stored_without_mlflow,
        told=told,
        in_time=in_time,
        resumed=(root / "resumed.log").read_text(encoding="utf-8"),
        steady=steady,
        results=results,
    )


@contextlib.contextmanager
def tiny_disk(folder: Path) -> Iterator[Path | None]:
    """A folder that holds less than a checkpoint; None where it cannot be made."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", TINY_DISK, "none", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        made = False
    try:
        yield folder if made else None
    finally:
        if made:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def kill_after_a_checkpoint(arguments: list[str], log: Path) -> None:
    """Starts a training and kills its driver, and nothing else, once two checkpoints are stored."""
    process = start_mimic3d(*arguments, log=log)
    place = f"{DEFAULT_RUNS_URI}/stopped"
    store = CheckpointStore(DEFAULT_RUNS_URI, "stopped")
    deadline = time.monotonic() + PATIENCE_S
    while len(store.all()) < 2:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not storage.exists(f"{place}/result.json")


def disturb(
    arguments: list[str], home: Path, truncated: str, log: Path
) -> tuple[int, dict[str, tuple[int, int]], bool]:
    """Starts a training; kills MLflow, then a worker; sends SIGTERM to another worker, then to the driver.

    Args:
        truncated: the name of a checkpoint that lies there and is damaged.
    """
    # Loads Ray, which takes the stack's settings when it is imported.
    from mimic3d_platform.training.interrupts import STOP_PATIENCE_S

    process = start_mimic3d(*arguments, log=log)
    store = CheckpointStore(DEFAULT_RUNS_URI, "stopped")

    def alive() -> bool:
        return process.poll() is None

    def stored_beyond(nimg: int) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            newest = [stored.nimg for stored in store.all() if not stored.uri.endswith(truncated)][-1]
            if newest >= nimg:
                return newest
            assert alive() and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.1)

    try:
        at = wait_until("stopped", 40, alive)
        kill_service(home, "mlflow")
        stored_without_mlflow = stored_beyond(at + 1)
        worker_processes(home)[-1].kill()
        local.up(home)
        at = wait_until("stopped", stored_without_mlflow + 8, alive)
        worker_processes(home)[0].terminate()
        told = {"worker": (at, stored_beyond(at))}
        at = wait_until("stopped", told["worker"][1] + 8, alive)
        started = time.monotonic()
        process.terminate()
        assert process.wait(PATIENCE_S) == 130, log.read_text(encoding="utf-8")
        in_time = time.monotonic() - started < STOP_PATIENCE_S
        told["driver"] = (at, store.all()[-1].nimg)
        return stored_without_mlflow, told, in_time
    finally:
        process.kill()
        process.wait()


def finish_while_storage_is_cut(arguments: list[str], home: Path, log: Path) -> None:
    """Resumes to the end; storage does not answer from the first steps until the present stage has ended.

    There the run waits, at the latest: the checkpoint that ends a stage is never missing.
    """
    newest = CheckpointStore(DEFAULT_RUNS_URI, "stopped").all()[-1].nimg
    end = STAGE1 if newest < STAGE1 else TOTAL
    process = start_mimic3d(*arguments, log=log)
    try:
        wait_until("stopped", 1, lambda: process.poll() is None)
        kill_service(home, "s3")
        deadline = time.monotonic() + PATIENCE_S
        while f": {end} of {TOTAL} images" not in log.read_text(encoding="utf-8"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        local.up(home)
        assert process.wait(PATIENCE_S) == 0, log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()


def files_of(uri: str) -> dict[str, bytes]:
    return {place.removeprefix(f"{uri}/"): storage.read_bytes(place) for place in storage.list_files(uri)}


def test_a_full_disk_is_one_line_and_no_attempt_is_repeated(story: Story) -> None:
    if story.disk_full is None:
        pytest.skip("this user may not mount a disk to fill")
    said = error_of(story.disk_full)
    assert said.startswith("cannot write a checkpoint below ") and "TMPDIR" in said
    assert "/disk" in said  # The workers' temporary folder is the one that the user named.


def test_a_killed_run_resumes_and_ends_like_an_undisturbed_one(story: Story) -> None:
    assert "resumed_from" in points("stopped"), story.resumed
    assert "resumed_from" not in points("steady")
    starts = points("stopped")["resumed_from"]
    # Where the driver's patience ended, the command after it resumed where a worker had before.
    assert len(starts) >= (3 if story.in_time else 2) and all(
        step == nimg and 0 < nimg < TOTAL for step, nimg in starts
    )
    finals = [files_of(story.results[name]["checkpoint_uri"]) for name in ("stopped", "steady")]
    digests = [hashlib.sha256(files["generator/generator.safetensors"]).hexdigest() for files in finals]
    assert digests[0] == digests[1]
    assert story.results["stopped"]["metrics"] == story.results["steady"]["metrics"]


def test_a_truncated_checkpoint_is_named_and_the_run_resumes_from_the_one_before(story: Story) -> None:
    assert f"{story.truncated} is damaged: state.pt is not what was written" in story.disturbed


def test_on_sigterm_a_checkpoint_is_stored_first_and_the_run_resumes_from_it(story: Story) -> None:
    assert "error: stopped; run the same command again to resume" in story.disturbed
    starts = [nimg for nimg, _ in points("stopped")["resumed_from"]]
    for who, (at, stored) in story.told.items():
        # On a machine so busy that the driver's patience ended, it resumes from the checkpoint before.
        assert stored >= at or (who == "driver" and not story.in_time), (who, at, stored)
        assert any(start >= stored for start in starts), (who, stored, starts)


def test_no_line_is_lost_of_a_worker_that_died_while_mlflow_did_not_answer(story: Story) -> None:
    starts = [nimg for nimg, _ in points("stopped")["resumed_from"]]
    assert any(start >= story.stored_without_mlflow for start in starts)
    steps = [step for step, _ in points("stopped-stage1", run_of("stopped").info.run_id)["loss/generator_2d"]]
    assert set(range(16, STAGE1 + 1, 16)) <= set(steps)


def test_stage_2_names_the_checkpoint_of_stage_1_that_it_came_from(story: Story) -> None:
    [kept] = [c for c in CheckpointStore(DEFAULT_RUNS_URI, "steady").all() if c.nimg == STAGE1]
    first, second = (run_of(f"steady-stage{stage}", run_of("steady").info.run_id) for stage in (1, 2))
    assert first.info.start_time < second.info.start_time < second.info.end_time
    assert first.info.end_time < second.info.end_time
    tags = second.data.tags
    assert tags["mimic3d.stage1_checkpoint"] == kept.uri
    assert tags["mimic3d.stage1_checkpoint.sha256"] == kept.digest


def test_mlflow_has_schedules_speed_memory_and_the_machines_load(story: Story) -> None:
    for stage in (1, 2):
        logged = points(f"steady-stage{stage}", run_of("steady").info.run_id)
        for key in (
            "schedule/generator_lr",
            "schedule/ema_decay",
            "speed/data_wait_share",
            "gradient/generator",
        ):
            assert len(logged[key]) == len(logged["loss/generator_2d"]), key
        assert all(value > 0 for _, value in logged["memory/worker_megabytes"])
        assert "system/cpu_utilization_percentage" in logged
        assert {"loss/density"} | ({"loss/r1_2d"} if stage == 1 else set()) <= logged.keys()
    assert run_of("steady").data.tags["mimic3d.hardware"].startswith("2 x ")


def test_the_same_losses_are_logged_whatever_happened_to_the_run(story: Story) -> None:
    for stage in (1, 2):
        curves = []
        for name in ("stopped", "steady"):
            logged = points(f"{name}-stage{stage}", run_of(name).info.run_id)
            # Those of every step: R1 and density are of the steps before a line, which a stop may divide.
            kept = [
                key for key in logged if key.startswith("loss/") and "r1" not in key and "density" not in key
            ]
            curves.append({key: dict(logged[key]) for key in kept})
        for key, steady in curves[1].items():
            # The disturbed run has further lines where it was stopped.
            assert steady.items() <= curves[0][key].items(), (stage, key)


def test_checkpoints_are_data_and_only_the_newest_and_stage_1s_end_stay(story: Story) -> None:
    place = f"{DEFAULT_RUNS_URI}/steady"
    states = [uri for uri in storage.list_files(place) if uri.endswith("/state.pt")]
    kept = CheckpointStore(DEFAULT_RUNS_URI, "steady").all()
    assert [checkpoint.nimg for checkpoint in kept] == [STAGE1, TOTAL - 32, TOTAL]
    assert [uri.rsplit("/", 1)[0] for uri in states] == [checkpoint.uri for checkpoint in kept]
    for uri in states:
        state = torch.load(io.BytesIO(storage.read_bytes(uri)), weights_only=True)
        assert {"nimg", "generator", "ema", "generator_optimizer"} <= state.keys()
    assert kept[-1].uri == story.results["steady"]["checkpoint_uri"]


def test_the_terminal_shows_progress_and_nothing_of_the_libraries(story: Story) -> None:
    assert story.steady.stderr == ""
    for said in (story.resumed, story.steady.stdout):
        assert f"{TOTAL} of {TOTAL} images" in said and "images/s" in said
        assert not [word for word in ("Traceback", "ray::", "WARNING", "INFO") if word in said]
    assert f"registered {MODEL} version 1" in story.resumed
    assert "version 1 is champion: no version had this alias before" in story.resumed


def test_the_result_of_a_finished_run_is_shown_again(story: Story) -> None:
    again = mimic3d(*story.arguments, "--name", "steady")
    assert again.returncode == 0 and "starting the workers" not in again.stdout
    table = story.steady.stdout[story.steady.stdout.index("metric") :]
    assert again.stdout.endswith(table)


def test_a_name_stands_for_one_config(story: Story) -> None:
    said = error_of(mimic3d(*story.arguments, "--name", "steady", "--set", "imitation.lpips_weight=0.5"))
    assert "exists with another config (imitation.lpips_weight 1.0 -> 0.5)" in said and "--name" in said


def test_mlflow_holds_a_run_and_a_child_for_each_stage(story: Story) -> None:
    parent = run_of("steady")
    assert parent.info.status == "FINISHED"
    params = {key: str(value) for key, value in flatten(to_dict(story.config)).items()}
    assert params.items() <= parent.data.params.items()
    for stage in (1, 2):
        child = run_of(f"steady-stage{stage}", parent.info.run_id)
        assert child.info.status == "FINISHED" and child.data.params["stage"] == str(stage)
        steps = {step for step, _ in points(f"steady-stage{stage}", parent.info.run_id)["loss/generator_2d"]}
        assert min(steps) > (0, STAGE1)[stage - 1] and max(steps) == (STAGE1, TOTAL)[stage - 1]
    tags = parent.data.tags
    assert tags["mimic3d.config"] == fingerprint(story.config)
    assert tags["mimic3d.data"] == open_dataset(story.config.data.uri).fingerprint
    assert tags["mimic3d.version"] == metadata.version("mimic3d")
    assert tags["mimic3d.seed"] == str(story.config.seed) and tags["mimic3d.commit"]


def test_mlflow_holds_the_metrics_of_both_branches_at_each_stage(story: Story) -> None:
    for name in ("steady", "stopped"):
        logged = points(name)
        for branch in ("2d", "3d"):
            shares = dict(logged[f"warp_share/{branch}"])
            # A generator this young may show a view nothing that another can be compared with.
            compared = tuple(nimg for nimg in MOMENTS if shares.get(nimg) != 0)
            moments = {measure: MOMENTS for measure in MEASURES} | {
                "warp_detail": compared,
                "warp_psnr": compared,
            }
            for measure in MEASURES:
                found = logged.get(f"{measure}/{branch}", [])
                assert tuple(step for step, _ in found) == moments[measure], (name, measure, branch)
                assert np.isfinite([value for _, value in found]).all()
        assert not [key for key in logged if key.lower().startswith(("fid", "lpips"))]


@pytest.mark.parametrize("name", ["stopped", "steady"])
def test_the_runs_folder_has_the_log_that_mlflow_has(story: Story, name: str) -> None:
    uri = f"{DEFAULT_RUNS_URI}/{name}"
    segments = storage.list_files(f"{uri}/metrics", suffix=".jsonl")
    lines = [json.loads(line) for segment in segments for line in storage.read_bytes(segment).splitlines()]
    parent = run_of(name).info.run_id
    for stage, logged in (
        ("run", points(name)),
        *((f"stage{stage}", points(f"{name}-stage{stage}", parent)) for stage in (1, 2)),
    ):
        stored: dict[str, list[tuple[int, float]]] = {}
        for line in lines:
            if line["stage"] == stage:
                for key, value in line.get("metrics", {}).items():
                    stored.setdefault(key, []).append((line["nimg"], float(value)))
        for key, found in stored.items():
            if name == "steady" or key.startswith("loss/generator"):
                # MLflow has further points of the disturbed run, which it logged after its last checkpoint.
                assert set(found) <= set(logged[key]), (stage, key)
                assert len(found) == len(set(found)), (stage, key)
        if name == "steady":
            assert stored.keys() == logged.keys()
            assert all(len(stored[key]) == len(logged[key]) for key in stored)
    sent = json.loads(storage.read_bytes(f"{uri}/metrics/sent.json"))
    assert sent == {stage: sum(line["stage"] == stage for line in lines) for stage in sent}
    pictures = [line["file"] for line in lines if "file" in line]
    assert pictures == [f"samples/{nimg:09d}.png" for nimg in (0, 80, 160, TOTAL)]
    assert all(storage.read_bytes(f"{uri}/{picture}")[1:4] == b"PNG" for picture in pictures)


@pytest.mark.parametrize("name", ["stopped", "steady"])
def test_no_point_is_logged_twice(story: Story, name: str) -> None:
    parent = run_of(name).info.run_id
    for logged in (points(name), *(points(f"{name}-stage{stage}", parent) for stage in (1, 2))):
        for key, values in logged.items():
            steps = [step for step, _ in values]
            assert len(steps) == len(set(steps)), (key, steps)


def test_mlflow_holds_sample_grids(story: Story, tmp_path: Path) -> None:
    from PIL import Image

    tracking.download_artifacts(run_of("stopped").info.run_id, "samples", tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{nimg:09d}.png" for nimg in (0, 80, 160, TOTAL)]
    for name in names:
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 5


def test_a_pulled_model_draws_the_checkpoints_image_bit_for_bit(story: Story, tmp_path: Path) -> None:
    uri = f"models:/{MODEL}@champion"
    assert mimic3d("pull", uri, tmp_path / "pulled").returncode == 0
    kept = f"{story.results['stopped']['checkpoint_uri']}/generator"
    storage.copy_tree(kept, tmp_path / "kept")
    for model, name in ((uri, "a"), (tmp_path / "pulled", "b"), (tmp_path / "kept", "c")):
        drawn = mimic3d("render", model, tmp_path / f"{name}.png", "--seeds", "0-1", "--views", 2)
        assert drawn.returncode == 0 and drawn.stderr == "", drawn.stderr
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in "abc"]
    assert pictures[0] == pictures[1] == pictures[2]
    assert load_generator(tmp_path / "pulled")[1] == story.config


def test_a_model_or_alias_that_is_not_there_is_one_line_of_what_is(story: Story, tmp_path: Path) -> None:
    for uri, words in {
        f"models:/{MODEL}@winner": ("no alias 'winner'", "aliases: champion"),
        f"models:/{MODEL}/7": ("no version 7", "versions: 1 to 1"),
        "models:/buses@champion": ("no model 'buses'", MODEL),
    }.items():
        said = error_of(mimic3d("pull", uri, tmp_path / "none"))
        assert all(word in said for word in words), said


def test_no_secret_is_in_mlflow_the_runs_folder_or_any_log(story: Story, own_home: Path) -> None:
    names = ("stopped", "steady")
    assert_no_secret_leaked(
        own_home, *(storage.read_bytes(f"{DEFAULT_RUNS_URI}/{name}/{CONFIG}") for name in names)
    )


def experiment() -> str:
    return client().get_experiment_by_name(EXPERIMENT).experiment_id


def run_of(name: str, parent: str | None = None) -> Any:
    return tracking.find_run(experiment(), name, parent)


def points(name: str, parent: str | None = None) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) points of each metric of a run, by step."""
    run = run_of(name, parent)
    histories = {key: client().get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {key: sorted((point.step, point.value) for point in found) for key, found in histories.items()}


def test_an_extended_run_is_one_longer_run(story: Story) -> None:
    sets = {"schedule.stage1_kimg": 0.016, "schedule.cooldown_kimg": 0, "output.log_steps": 1}
    base = [*story.arguments, *(part for key, value in sets.items() for part in ("--set", f"{key}={value}"))]
    short, long = (["--set", f"schedule.stage2_kimg={kimg}"] for kimg in (0.016, 0.032))
    refused = mimic3d(*base, *long, "--name", "extended", "--extend", timeout=PATIENCE_S)
    assert "there is no run extended to extend" in error_of(refused)
    assert mimic3d(*base, *short, "--name", "extended", timeout=PATIENCE_S).returncode == 0
    extended = mimic3d(*base, *long, "--name", "extended", "--extend", timeout=PATIENCE_S)
    assert extended.returncode == 0, extended.stderr
    assert "the run extended is extended from 0.032 to 0.048 kimg" in extended.stderr + extended.stdout
    assert mimic3d(*base, *long, "--name", "straight", timeout=PATIENCE_S).returncode == 0
    weights = [
        storage.read_bytes(f"{store.all()[-1].uri}/generator/generator.safetensors")
        for store in (CheckpointStore(DEFAULT_RUNS_URI, name) for name in ("extended", "straight"))
    ]
    assert weights[0] == weights[1]
    experiment = client().get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    run = tracking.find_run(experiment.experiment_id, "extended")
    assert run is not None
    assert run.data.tags["mimic3d.extensions"].startswith("0.032 -> 0.048 kimg at 20")
