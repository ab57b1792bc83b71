"""Runs in MLflow are found again, a resumed run leaves single points, and outages are waited for."""

import io
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import mlflow.data
import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import EndpointConnectionError, NoCredentialsError
from PIL import Image
from pydantic import SecretStr

from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.uris import without_login
from mimic3d_platform.tracking import (
    check_tracking,
    closed_after,
    finish_run,
    flat_params,
    log_dataset,
    run_url,
    start_or_resume_run,
)
from mimic3d_platform.tracking.logger import File, RunLogger, Tag
from mimic3d_platform.tracking.server import client, own_login, tracking_errors
from mimic3d_platform.tracking.staged_run import StagedRun, StageRun
from mlflow_server import MlflowServer


@pytest.fixture
def experiment(stack) -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


def _points(run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client().get_metric_history(run_id, name))


def test_a_run_is_found_again_by_its_name(experiment):
    config = {"seed": 3, "model": {"z_dim": 16, "channels": (8, 4)}}
    first = start_or_resume_run(experiment, "it's a run", config, {"recipe": "cars-demo"})
    finish_run(first, "KILLED")
    again = start_or_resume_run(experiment, "it's a run", {**config, "seed": 4, "new": 1}, {"host": "b"})
    assert again == first
    run = client().get_run(first)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"seed": "3", "model.z_dim": "16", "model.channels": "(8, 4)", "new": "1"}
    assert run.data.tags["recipe"] == "cars-demo" and run.data.tags["host"] == "b"
    assert start_or_resume_run(experiment, "another") != first
    assert run_url(first).endswith(f"/runs/{first}")


def test_stages_are_children_of_a_run(experiment):
    parent = start_or_resume_run(experiment, "cars")
    stages = [start_or_resume_run(experiment, name, parent_run_id=parent) for name in ("stage1", "stage2")]
    assert start_or_resume_run(experiment, "stage1", parent_run_id=parent) == stages[0]
    other = start_or_resume_run(experiment, "other")
    assert start_or_resume_run(experiment, "stage1", parent_run_id=other) not in stages
    assert client().get_run(stages[0]).data.tags["mlflow.parentRunId"] == parent
    # A run of that name without a parent is another run.
    assert start_or_resume_run(experiment, "stage1") not in stages


def test_the_end_of_a_training_closes_its_stages_and_no_evaluation(experiment):
    parent = start_or_resume_run(experiment, "cars")
    stage = StageRun("stage1", parent, {}, {}, "s3://bucket/set", "f" * 64, {})
    names = ("stage1", "evaluate-1")
    children = [start_or_resume_run(experiment, name, parent_run_id=parent) for name in names]
    StagedRun(parent, {"stage1": stage}).finish("FINISHED")
    assert [client().get_run(run).info.status for run in (parent, *children)] == [
        "FINISHED",
        "FINISHED",
        "RUNNING",
    ]


def test_a_run_whose_work_fails_is_closed_as_failed(experiment):
    done, failed = (start_or_resume_run(experiment, name) for name in ("done", "failed"))
    with closed_after(done):
        pass
    with pytest.raises(KeyboardInterrupt), closed_after(failed):
        raise KeyboardInterrupt
    assert [client().get_run(run).info.status for run in (done, failed)] == ["FINISHED", "FAILED"]


def test_a_login_for_another_server_is_not_sent_to_the_one_here_nor_the_other_way_round(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of the other")
    with own_login():
        assert "MLFLOW_TRACKING_TOKEN" not in os.environ
        os.environ["MLFLOW_TRACKING_PASSWORD"] = "of the one here"
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "of the other"
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://named")
    with own_login():
        assert os.environ["MLFLOW_TRACKING_TOKEN"] == "of the other"


@pytest.mark.parametrize(
    "error",
    [NoCredentialsError(), EndpointConnectionError(endpoint_url="http://a"), S3UploadFailedError("b")],
)
def test_a_fault_of_the_object_storage_of_artifacts_is_one_line(stack, error):
    words = r"cannot pull from MLflow at .* object storage .*AWS_ACCESS_KEY_ID"
    with pytest.raises(UserError, match=words), tracking_errors("pull from"):
        raise error


def test_the_data_set_is_an_input_of_the_run_once(experiment):
    run_id, digest = start_or_resume_run(experiment, "cars"), "0123456789abcdef" * 4
    for _ in range(2):
        log_dataset(run_id, "s3://mimic3d/data/cars", digest, {"images": 12})
    [found] = client().get_run(run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("cars", digest[:36])
    assert {tag.key: tag.value for tag in found.tags} == {"mlflow.data.context": "training"}
    assert json.loads(found.dataset.profile) == {"images": 12, "fingerprint": digest}
    assert mlflow.data.get_source(found).uri == "s3://mimic3d/data/cars"


def test_a_finished_run_keeps_its_end_unless_it_is_opened_again(experiment):
    run_id = start_or_resume_run(experiment, "stage1")
    finish_run(run_id)
    ended = client().get_run(run_id).info.end_time
    finish_run(run_id, "KILLED")
    assert start_or_resume_run(experiment, "stage1", reopen=False) == run_id
    info = client().get_run(run_id).info
    assert (info.status, info.end_time) == ("FINISHED", ended)
    start_or_resume_run(experiment, "stage1")
    assert client().get_run(run_id).info.status == "RUNNING"


def test_an_experiment_says_that_it_is_for_training_models(experiment):
    made = client().create_experiment(f"{experiment}-by-hand")
    for name in (experiment, f"{experiment}-by-hand"):
        start_or_resume_run(name, "run")
        tags = client().get_experiment_by_name(name).tags
        assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert made


def test_sample_grids_are_images_with_a_step_and_logged_once(experiment):
    run_id = start_or_resume_run(experiment, "pictures")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(buffer, "png")
    for _ in range(2):  # Of a run that resumes: another logger.
        logger = RunLogger(run_id)
        for step in (400, 800):
            logger.add(File(f"samples/{step:09d}.png", buffer.getvalue()))
        logger.flush()
    images = [file.path for file in client().list_artifacts(run_id, "images") if file.path.endswith(".png")]
    assert sorted(path.split("+")[:3] for path in images) == [
        ["images/samples", "step", "400"],
        ["images/samples", "step", "800"],
    ]


def test_metrics_files_and_tags_arrive(experiment, tmp_path):
    run_id = start_or_resume_run(experiment, "logging")
    logger = RunLogger(run_id)
    logger.log_metrics({"loss/g": 1.5, "fd_mobilenetv2/3d": 40}, step=0)
    logger.log_metrics({"loss/g": 1.25}, step=320)
    logger.add(File("samples/000320.png", b"a picture"))
    logger.add(File("note.txt", b"hello"))
    logger.add(Tag("place", "s3://somewhere"))
    logger.flush()
    assert logger.taken == 5 and logger.waiting == 0
    assert _points(run_id, "loss/g") == [(0, 1.5), (320, 1.25)]
    assert _points(run_id, "fd_mobilenetv2/3d") == [(0, 40)]
    where = client().download_artifacts(run_id, "", str(tmp_path))
    assert Path(where, "samples/000320.png").read_bytes() == b"a picture"
    assert Path(where, "note.txt").read_text(encoding="utf-8") == "hello"
    assert client().get_run(run_id).data.tags["place"] == "s3://somewhere"


def test_a_resumed_run_leaves_single_points(experiment):
    run_id = start_or_resume_run(experiment, "resumed")
    logger = RunLogger(run_id)
    for step in (0, 100, 200):
        logger.log_metrics({"loss": step / 10}, step)
    logger.log_metrics({"loss": 99}, 100)
    logger.flush()
    start_or_resume_run(experiment, "resumed")
    logger = RunLogger(run_id)
    for step in (100, 200, 300):  # From the checkpoint at 100 on, with a metric that is new.
        logger.log_metrics({"loss": step / 10, "new": step}, step)
    logger.flush()
    assert _points(run_id, "loss") == [(0, 0), (100, 10), (200, 20), (300, 30)]
    assert _points(run_id, "new") == [(100, 100), (200, 200), (300, 300)]


def test_an_entry_that_mlflow_refuses_is_named_at_the_end_and_stops_no_other(experiment):
    run_id = start_or_resume_run(experiment, "refused")
    logger = RunLogger(run_id)
    logger.log_metrics({"loss": 1}, 0)
    logger.log_metrics({"no such * name": 1}, 0)
    logger.log_metrics({"loss": 2}, 1)
    with pytest.raises(UserError, match=r"1 were lost: .*no such"):
        logger.flush()
    assert logger.taken == 3 and logger.waiting == 0
    assert _points(run_id, "loss") == [(0, 1), (1, 2)]


def test_params_are_flat_text_within_limits_and_without_secrets():
    flat = flat_params(
        {
            "data": {"uri": "https://me:hunter2@host/x", "key": SecretStr("hunter2")},
            "long": "x" * 10000,
            "odd*key": None,
        }
    )
    assert flat["data.uri"] == "https://host/x"
    assert "hunter2" not in str(flat) and "data.key" not in flat
    assert len(flat["long"]) == 6000 and flat["long"].endswith("… (10000 characters)")
    assert flat["odd_key"] == "None"
    assert without_login("http://user:secret@host:5000/p") == "http://host:5000/p"
    assert without_login("https://host/a.zip?X-Amz-Signature=secret") == "https://host/a.zip"
    assert without_login("s3://bucket/what?is=this") == "s3://bucket/what?is=this"


# A server that goes away.


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    try:
        server.start()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


@pytest.mark.slow
def test_what_is_logged_during_an_outage_arrives_after_it(server):
    run_id = start_or_resume_run("outage", "run")
    logger = RunLogger(run_id)
    logger.log_metrics({"loss": 0}, 0)
    logger.flush()
    server.stop()
    start = time.perf_counter()
    for step in range(1, 50):
        logger.log_metrics({"loss": step}, step)
    logger.add(File("note.txt", b"still here"))
    assert time.perf_counter() - start < 20  # training does not wait: the server stays away until later
    with pytest.raises(
        UserError, match=r"entries wait: it does not answer; .* run the command again once MLflow answers"
    ):
        logger.flush(timeout=1)
    with pytest.raises(UserError, match=f"no MLflow server answers at {server.uri}"):
        check_tracking()
    server.start()
    logger.flush()
    assert _points(run_id, "loss") == [(step, step) for step in range(50)]
    assert [file.path for file in client().list_artifacts(run_id)] == ["note.txt"]


def test_the_check_is_quick_and_says_what_to_do(monkeypatch, stack):
    assert check_tracking() == stack.services["mlflow"].url
    with monkeypatch.context() as changed:
        changed.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@host:5000x")
        with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is http://host:5000x, whose port"):
            check_tracking()
    with socket.socket() as listener:  # Takes connections and says nothing.
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{port}")
        start = time.perf_counter()
        with pytest.raises(UserError, match="no MLflow server answers") as caught:
            check_tracking()
        assert "hunter2" not in str(caught.value)
        listener.listen()
        with pytest.raises(
            UserError, match=r"takes connections but does not answer|no MLflow server"
        ) as caught:
            check_tracking()
        assert time.perf_counter() - start < 60
        assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
