"""Takes a node, then the head of a cluster away from one elastic run; prints what became of it.

    python tests/chaos_nodes.py     # about three minutes on two idle cores; part of `make chaos`

A stack of its own with two Ray nodes of one CPU each, and a run of one to two workers: the second node is
killed (its raylet and all on it), and the run goes on with one worker; then the head is killed, the command
ends by one line, the head is started again, and the same command brings the run to its end.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos import Chaos, make_data
from mimic3d_platform import local, runs, storage
from mimic3d_platform.checkpoints import CheckpointStore
from mimic3d_platform.console import Console
from mimic3d_platform.local.state import Stack
from mimic3d_platform.settings import use_services
from run_faults import wait_until, worker_processes

NAME = "nodes"
TOTAL = 240
HEAD_PATIENCE_S = 180.0


def kill_service(home: Path, name: str) -> int:
    """Kills a service of the stack with all its processes; returns how many those were."""
    family = Stack.load(home).services[name].leader.family()
    for process in family:
        process.kill()
    return len(family)


def main() -> int:
    home = Path(tempfile.mkdtemp(prefix="m3d-chaos-", dir="/tmp"))
    os.environ["MIMIC3D_HOME"] = str(home)
    console = Console()
    rows: list[tuple[str, str]] = []
    done = False
    try:
        local.up(home, nodes=2, cpus=1, on_progress=console.say)
        use_services()
        make_data(home / "meshes")
        chaos = Chaos(home, home, TOTAL)
        chaos.arguments[chaos.arguments.index("--workers") + 1] = "1:2"
        chaos.start(NAME)
        at = wait_until(NAME, 40, chaos.alive)
        rows.append(("two nodes", f"{len(worker_processes(home))} workers at {at} images"))
        rows.append(("node killed", f"{kill_service(home, 'ray-2')} processes at {at} images"))
        at = wait_until(NAME, at + 32, chaos.alive)
        rows.append(("after it", f"{len(worker_processes(home))} worker at {at} images"))
        kill_service(home, "ray")
        started = time.monotonic()
        status = chaos.process.wait(HEAD_PATIENCE_S)
        said = next(home.glob(f"{NAME}-01.log")).read_text().splitlines()[-1]
        rows.append(
            (f"head killed at {at} images", f"status {status} in {time.monotonic() - started:.0f} s: {said}")
        )
        local.up(home, nodes=1, cpus=1)
        use_services()
        chaos.arguments[chaos.arguments.index("--workers") + 1] = "1"
        chaos.finish(NAME)
        newest = CheckpointStore(runs.DEFAULT_RUNS_URI, NAME).whole()[-1]
        rows.append(("head started again", f"the same command went on, to {newest.nimg} of {TOTAL} images"))
        done = newest.nimg == TOTAL and storage.exists(f"{runs.DEFAULT_RUNS_URI}/{NAME}/result.json")
    finally:
        local.down(home)
        console.table(("what", "what became of the run"), rows)
        if done:
            shutil.rmtree(home, ignore_errors=True)
        else:
            console.say(f"logs: {home}")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
