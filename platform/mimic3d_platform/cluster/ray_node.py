"""One more Ray node on 127.0.0.1, in the foreground: `python -m mimic3d_platform.cluster.ray_node`.

`ray start` refuses a second node where the cluster is kept to loopback, so this starts one as Ray's own
`ray.cluster_utils` does. Several nodes on one machine are for trying what happens when one is lost.
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


def main() -> None:
    """Join the cluster at `--address` once its head listens, and stay until a part of this node dies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--agent-port", type=int, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--object-store-memory", type=int, required=True)
    given = parser.parse_args()
    host, port = given.address.split(":")
    _wait_for(host, int(port))
    parameters = RayParams(
        gcs_address=given.address,
        node_ip_address=host,
        num_cpus=given.cpus,
        num_gpus=0,  # The head has them all.
        object_store_memory=given.object_store_memory,
        dashboard_agent_listen_port=given.agent_port,
        include_log_monitor=False,  # type: ignore[arg-type]  # The head's reads the log folder of both.
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
    )
    node = _start(parameters)
    while not node.dead_processes():
        time.sleep(1.0)
    sys.exit("a process of this Ray node has died")


def _start(parameters: RayParams) -> Node:
    """The node; Ray gives its raylet 30 s to come up, which on a busy machine may take several attempts."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            fresh = copy.copy(parameters)  # Ray fills in what it finds out.
            return Node(fresh, head=False, shutdown_at_exit=True, spawn_reaper=True)
        except Exception:
            if attempt == ATTEMPTS:
                raise
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()
    raise AssertionError("the last attempt returns or raises")


def _wait_for(host: str, port: int, patience_s: float = 100.0) -> None:
    deadline = time.monotonic() + patience_s
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
