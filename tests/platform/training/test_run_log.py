"""A run that dies while MLflow does not answer, and resumes, sends MLflow what it has missed, once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimic3d.config.recipes import get_recipe
from mimic3d_platform.errors import UserError
from mimic3d_platform.tracking import EXPERIMENT, children_of, start_or_resume_run
from mimic3d_platform.tracking.logger import RunLogger
from mimic3d_platform.tracking.server import client
from mimic3d_platform.tracking.staged_run import StagedRun, StageRun
from mimic3d_platform.training.run_log import RunLog
from mlflow_server import MlflowServer

pytestmark = pytest.mark.slow

# Meets an outage, saves its log as before a checkpoint at image 19, logs on, is killed; prints how far it is.
WORKER = """
import sys, time
from PIL import Image
from mimic3d.config.recipes import get_recipe
from mimic3d_platform.tracking.staged_run import StagedRun
from mimic3d_platform.training.run_log import RunLog

log = RunLog(StagedRun(sys.argv[1], {}), get_recipe("cars-demo"), sys.argv[2])
log.resume(None)
log.metrics({"loss": 0}, 0)
log.flush(300)
log.save()
print("began", flush=True)
sys.stdin.readline()
for nimg in range(1, 20):
    log.metrics({"loss": nimg}, nimg)
log.picture(Image.new("RGB", (4, 4), (255, 0, 0)), 19)
log.tag("checkpoint", "s3://somewhere", 19)
log.save()
for nimg in range(20, 30):
    log.metrics({"loss": -1}, nimg)
print("logged on", flush=True)
time.sleep(600)
"""


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = MlflowServer(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    try:
        server.start()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def test_what_mlflow_missed_is_in_the_runs_folder_and_arrives_once(
    server: MlflowServer, tmp_path: Path
) -> None:
    run_id = start_or_resume_run("outage", "resumed")
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, run_id, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        try:
            assert worker.stdout.readline() == "began\n"
            server.stop()
            worker.stdin.write("the server is gone\n")
            worker.stdin.flush()
            assert worker.stdout.readline() == "logged on\n"
        finally:
            worker.kill()
    assert (folder / "samples" / "000000019.png").is_file()
    server.start()
    for _ in range(2):  # Once more, as after a second death before anything was saved.
        log = RunLog(StagedRun(run_id, {}), get_recipe("cars-demo"), str(folder))
        log.resume(19)
        assert log.waiting
    for nimg in range(20, 40):  # Those again that the dead worker took with it.
        log.metrics({"loss": nimg}, nimg)
    log.flush(300)
    log.save()
    history = client().get_metric_history(run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(nimg, nimg) for nimg in range(40)]
    assert client().get_run(run_id).data.tags["mimic3d.checkpoint"] == "s3://somewhere"
    assert [file.path for file in client().list_artifacts(run_id, "samples")] == ["samples/000000019.png"]
    last = RunLog(StagedRun(run_id, {}), get_recipe("cars-demo"), str(folder))
    last.resume(39)
    assert not last.waiting


def test_a_stage_that_begins_while_mlflow_does_not_answer_gets_its_run_later(server: MlflowServer) -> None:
    run_id = start_or_resume_run(EXPERIMENT, "staged")
    stage = StageRun("staged-stage2", run_id, {"stage": 2}, {}, "s3://bucket/cars", "f" * 64, {"images": 1})
    log = StagedRun(run_id, {"stage2": stage})
    assert children_of(run_id) == []
    server.stop()
    logger = RunLogger(stage.start)
    logger.log_metrics({"loss": 1}, 100)
    with pytest.raises(UserError, match="1 entries wait: it does not answer"):
        logger.flush(2)
    server.start()
    logger.flush(300)
    log.finish("FINISHED")
    [made] = children_of(run_id)
    assert made.info.run_name == "staged-stage2"
    assert made.data.metrics == {"loss": 1} and made.data.params == {"stage": "2"}
    assert made.inputs.dataset_inputs[0].dataset.name == "cars"
    assert {client().get_run(each).info.status for each in (run_id, made.info.run_id)} == {"FINISHED"}
