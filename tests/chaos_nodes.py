"""Preempts a node, kills the head and the services during one elastic run.

    python tests/chaos_nodes.py     # part of `make chaos`

Starts a stack with two Ray nodes of one CPU each, and a run of one to two workers with a checkpoint every 80
images. Ray is notified that the second node will be preempted: the run must write a checkpoint first. The
node is killed: the run must resume with one worker. The head is killed: the command must end with one line,
and the same command must resume once the head is back. Then MLflow is killed for two minutes, and object
storage for the second of them: the run must wait for both, and MLflow must get every line of its log once.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos import BATCH, Chaos, make_data, outcome
from mimic3d_platform import local, storage
from mimic3d_platform.console import Console
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.settings import DEFAULT_RUNS_URI, use_services
from run_faults import kill_service, leave_ray, wait_until, worker_processes

NAME = "nodes"
TOTAL, CHECKPOINT = 320, 80
NOTICE_S, HEAD_PATIENCE_S = 100, 180.0
MLFLOW_AWAY_S, STORAGE_AWAY_S = 120.0, 60.0


def announce_the_end_of_the_second_node() -> None:
    """Sends Ray a preemption notice for the second node, as a cloud provider does."""
    import ray  # Here, since Ray reads the stack's settings on import.

    head = "node:__internal_head__"
    [node] = [node for node in ray.nodes() if node["Alive"] and head not in node["Resources"]]
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "wanted back"]
    place = ["--address", ray.get_runtime_context().gcs_address, "--node-id", node["NodeID"]]
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *place, *notice]
    command += ["--deadline-remaining-seconds", str(NOTICE_S)]
    subprocess.run(command, check=True, capture_output=True)


def checkpoint_on_notice(chaos: Chaos, patience_s: float = 600.0) -> int:
    """Waits for a checkpoint of the run that is due neither by interval nor by the end of a stage.

    Returns:
        The images at which it was written.
    """
    store, deadline = CheckpointStore(DEFAULT_RUNS_URI, NAME), time.monotonic() + patience_s
    planned = {*range(0, TOTAL + 1, CHECKPOINT), chaos.stage1}
    while not (found := {stored.nimg for stored in store.all()} - planned):
        if not chaos.alive() or time.monotonic() > deadline:
            raise SystemExit("the run makes no checkpoint on notice")
        time.sleep(0.1)
    return min(found)


def main() -> int:
    home = Path(tempfile.mkdtemp(prefix="m3d-chaos-", dir="/tmp"))
    os.environ["MIMIC3D_HOME"] = str(home)
    console = Console()
    rows: list[tuple[str, str]] = []
    checks: dict[str, bool] = {}
    try:
        local.up(home, nodes=2, cpus=1, on_progress=console.say)
        use_services()
        make_data(home / "meshes")
        chaos = Chaos(home, home, TOTAL, CHECKPOINT)
        chaos.arguments[chaos.arguments.index("--workers") + 1] = "1:2"
        chaos.start(NAME)

        at = wait_until(NAME, 2 * BATCH, chaos.alive)
        rows.append(("two nodes", f"{len(worker_processes(home))} workers at {at} images"))
        announce_the_end_of_the_second_node()
        stored = checkpoint_on_notice(chaos)
        rows.append(("node announced to go", f"a checkpoint at {stored} images"))
        checks["a checkpoint on notice"] = at <= stored

        rows.append(("node killed", f"{kill_service(home, 'ray-2')} processes"))
        at = wait_until(NAME, stored + 4 * BATCH, chaos.alive)
        workers = len(worker_processes(home))
        rows.append(("after it", f"{workers} worker at {at} images"))
        checks["on with one worker"] = workers == 1

        leave_ray()
        kill_service(home, "ray")
        started = time.monotonic()
        status = chaos.process.wait(HEAD_PATIENCE_S)
        said = (home / f"{NAME}-01.log").read_text(encoding="utf-8").splitlines()[-1]
        seconds = time.monotonic() - started
        rows.append((f"head killed at {at} images", f"status {status} in {seconds:.0f} s: {said}"))
        checks["one line and status 2"] = status == 2 and said.startswith("error: the Ray head at ")
        local.up(home, nodes=1, cpus=1)
        use_services()
        chaos.arguments[chaos.arguments.index("--workers") + 1] = "1"
        chaos.start(NAME)

        at = wait_until(NAME, stored + 2 * BATCH, chaos.alive)
        rows.append(("head started again", f"the same command went on, {at} images"))
        kill_service(home, "mlflow")
        time.sleep(MLFLOW_AWAY_S - STORAGE_AWAY_S)
        kill_service(home, "s3")
        time.sleep(STORAGE_AWAY_S)
        running = chaos.alive()
        local.up(home, nodes=1, cpus=1)
        chaos.finish(NAME)
        waited = f"MLflow for {MLFLOW_AWAY_S:.0f} s, object storage for {STORAGE_AWAY_S:.0f} s"
        rows.append((f"{waited} away", f"the run {'waited' if running else 'ENDED'}, then reached its end"))
        checks["the outages were outlasted by the same command"] = running and chaos.starts == 2

        found = outcome(NAME)
        checks[f"{TOTAL} images and a result"] = found["images"] == TOTAL and storage.exists(
            f"{DEFAULT_RUNS_URI}/{NAME}/result.json"
        )
        lines = found["losses"]["1/loss/generator_2d"] + found["losses"]["2/loss/generator_2d"]
        steps = [step for step, _ in lines]
        checks["a line for each step, none twice"] = steps == list(range(BATCH, TOTAL + 1, BATCH))
    finally:
        leave_ray()
        local.down(home)
        console.table(("what", "what became of the run"), rows)
        done = len(checks) == 6 and all(checks.values())
        if done:
            shutil.rmtree(home, ignore_errors=True)
        else:
            console.say(f"logs: {home}")
    console.table(("held", ""), [(what, "yes" if held else "NO") for what, held in checks.items()])
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
