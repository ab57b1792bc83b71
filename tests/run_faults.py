"""Faults for a running training: killed workers and services, a truncated checkpoint."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from mimic3d_platform import storage
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.local.state import Stack
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from stack_processes import stack_processes

WORKER = "ray::RayTrainWorker"


def position(run: str, runs_uri: str = DEFAULT_RUNS_URI) -> int | None:
    """The images that a running training has reported, or None if none runs."""
    join_ray()
    import ray  # Here, since Ray reads the stack's settings on import.

    from mimic3d_platform.training.run_state import RunState

    try:
        state = RunState.find(runs_uri, run)
        report = state.latest_report(timeout=10) if state is not None else None
    except (ray.exceptions.RayError, ValueError):
        return None
    return report.nimg if report is not None and report.phase.startswith("stage") else None


def leave_ray() -> None:
    """Disconnects this process from the cluster, since Ray ends connected processes when the head stops."""
    import ray

    ray.shutdown()


def wait_until(
    run: str,
    nimg: int,
    alive: Callable[[], bool],
    timeout: float = 900,
    runs_uri: str = DEFAULT_RUNS_URI,
) -> int:
    """Waits until the run has reached `nimg` images; returns its position.

    Args:
        alive: whether the process that trains still runs.
    """
    deadline = time.monotonic() + timeout
    while (at := position(run, runs_uri)) is None or at < nimg:
        assert alive(), f"the run {run} ended before {nimg} images"
        assert time.monotonic() < deadline, f"the run {run} is at {at}, not {nimg}, after {timeout} s"
        time.sleep(0.05)
    return at


def worker_processes(home: Path) -> list[psutil.Process]:
    """The processes of training workers on the stack under `home`."""
    found = []
    for process in stack_processes(home):
        try:
            if process.is_running() and WORKER in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_service(home: Path, name: str) -> int:
    """Kills all processes of a service of the stack; returns their number."""
    leader = Stack.load(home).services[name].leader
    assert leader is not None, f"{name} does not run"
    family = leader.members()
    for process in family:
        process.kill()
    return len(family)


def truncate_newest(run: str, runs_uri: str = DEFAULT_RUNS_URI) -> str:
    """Truncates the newest checkpoint's state to half, as an interrupted write would; returns its name."""
    newest = CheckpointStore(runs_uri, run).all()[-1]
    place = storage.join(newest.uri, "state.pt")
    content = storage.read_bytes(place)
    storage.write_bytes(place, content[: len(content) // 2])
    return newest.name
