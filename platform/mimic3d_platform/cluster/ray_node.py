"""Runs a second or further Ray node on 127.0.0.1: `python -m mimic3d_platform.cluster.ray_node`.

`mimic3d up --nodes 3` starts one such process for each node beside the head. `ray start` refuses a second
node on the loopback address, so this process starts it as Ray's own `ray.cluster_utils` does. Several nodes
on one machine serve to try what happens when a node is lost.
"""

import argparse
import contextlib
import copy
import socket
import sys
import time

import psutil

from mimic3d_platform.cluster.ray_internals import Node, RayParams

ATTEMPTS = 3
HEAD_PATIENCE_S = 100.0
KILL_PATIENCE_S = 10.0


def main() -> None:
    """Joins the cluster at `--address` as soon as its head listens; ends when a process of the node dies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--agent-port", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--object-store-memory", type=int, required=True)
    options = parser.parse_args()
    host, port = options.address.split(":")
    _wait_for_head(host, int(port))
    parameters = RayParams(
        gcs_address=options.address,
        node_ip_address=host,
        num_cpus=options.cpus,
        num_gpus=0,  # The head offers all GPUs.
        object_store_memory=options.object_store_memory,
        dashboard_agent_listen_port=options.agent_port,
        # The head's log monitor reads the log folder of all nodes. Ray's annotation says `str`.
        include_log_monitor=False,  # type: ignore[arg-type]
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
    )
    node = _start_node(parameters)
    while not node.dead_processes():
        time.sleep(1.0)
    sys.exit("a process of this Ray node has died")


def _start_node(parameters: RayParams) -> Node:
    """Starts the node's processes; Ray gives its raylet 30 s to start, too few on a busy machine."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            fresh = copy.copy(parameters)  # Ray writes the ports it has chosen into its parameters.
            return Node(fresh, head=False, shutdown_at_exit=True, spawn_reaper=True)
        except Exception:
            if attempt == ATTEMPTS:
                raise
            started = psutil.Process().children(recursive=True)
            for process in started:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            # Reaps them too: no dead raylet is listed beside the one of the next attempt.
            psutil.wait_procs(started, timeout=KILL_PATIENCE_S)
    raise AssertionError("the last attempt returns or raises")


def _wait_for_head(host: str, port: int) -> None:
    deadline = time.monotonic() + HEAD_PATIENCE_S
    while True:
        try:
            socket.create_connection((host, port), timeout=1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                sys.exit(f"Ray's head does not listen at {host}:{port}")
        time.sleep(0.3)


if __name__ == "__main__":
    main()
