"""Ray actors under a name that only one living actor of the cluster bears, and the lock made of one."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mimic3d_platform.errors import ClusterGoneError, UserError
from mimic3d_platform.storage.digests import sha256

if TYPE_CHECKING:
    from ray.actor import ActorHandle

NAMESPACE = "mimic3d"
# An actor whose process was killed, for want of memory for example, begins again, with its first arguments.
MAX_RESTARTS = 10
# The actor of a driver that was killed outlives it for a moment.
NAME_PATIENCE_S = 45.0


class NameTakenError(RuntimeError):
    """Another living actor of the cluster bears the name."""


@contextlib.contextmanager
def named_actor(actor_class: type, name: str, *arguments: object) -> Iterator[ActorHandle]:
    """Starts `actor_class(*arguments)`, which needs no CPU, as the actor `name`; ends it with the block.

    It runs on this process's node, so that the loss of another node does not end it.

    Raises:
        NameTakenError: an actor of that name lives, and has for `NAME_PATIENCE_S`.
    """
    import ray

    actor = _start(actor_class, name, *arguments)
    try:
        yield actor
    finally:
        # Without the head, Ray would retry this for minutes.
        if not isinstance(sys.exception(), ClusterGoneError):
            with contextlib.suppress(Exception):
                ray.kill(actor)


def _start(actor_class: type, name: str, *arguments: object) -> ActorHandle:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote_class: Any = ray.remote(actor_class).options(
        num_cpus=0, name=name, namespace=NAMESPACE, scheduling_strategy=here, max_restarts=MAX_RESTARTS
    )
    deadline = time.monotonic() + NAME_PATIENCE_S
    while True:
        try:
            actor: ActorHandle = remote_class.remote(*arguments)
            ray.get(actor.__ray_ready__.remote())
            return actor
        except (ValueError, ray.exceptions.RayActorError) as error:
            if time.monotonic() > deadline:
                raise NameTakenError(name) from error
        time.sleep(1.0)


def find_actor(name: str) -> ActorHandle | None:
    """The living actor of that name, or None."""
    import ray

    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


@contextlib.contextmanager
def run_lock(runs_uri: str, run: str) -> Iterator[None]:
    """Keeps other processes of the cluster from training the same run, or the same sweep, during the block.

    Raises:
        UserError: another process holds the lock; says which.
    """
    name = run_actor_name("lock", runs_uri, run)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(named_actor(_Lock, name, f"process {os.getpid()} on {socket.gethostname()}"))
        except NameTakenError:
            raise UserError(
                f"the run {run} is being trained by {_holder(name)}: wait for it, stop it, or give another "
                "--name"
            ) from None
        yield


def run_actor_name(purpose: str, runs_uri: str, run: str) -> str:
    """The name of a run's actor for a purpose."""
    uri = f"{runs_uri.rstrip('/')}/{run}"
    return f"run-{purpose}-{sha256(uri.encode())[:16]}"


class _Lock:
    """The actor whose life is the lock."""

    def __init__(self, holder: str) -> None:
        self._holder = holder

    def holder(self) -> str:
        return self._holder


def _holder(lock: str) -> str:
    import ray

    with contextlib.suppress(Exception):
        actor = find_actor(lock)
        if actor is not None:
            return str(ray.get(actor.holder.remote(), timeout=10))
    return "another process"
