"""Runs work as Ray tasks on the running cluster: many numbered pieces, or one in the background.

Functions import Ray where they use it: commands that do not need it load this module too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, TypeVarTuple

import mimic3d
import mimic3d_platform
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.errors import UserError, first_line
from mimic3d_platform.settings import get_settings, use_services_of

if TYPE_CHECKING:
    import ray

Result = TypeVar("Result")
Shared = TypeVarTuple("Shared")

# Times that Ray runs a piece again after its worker process has died.
_MAX_RETRIES = 2
# Workers that `start_workers` starts at most, because it does not know how much work follows.
_EARLY_WORKERS = 16


def start_workers(work: Callable[..., object]) -> None:
    """Makes Ray start worker processes that have imported `work`, and returns without waiting for them.

    `run_pieces(work, …)` then finds them ready.

    Raises:
        UserError: no cluster is named, or it does not answer.
    """
    join_ray()
    import ray

    task = ray.remote(num_cpus=1, runtime_env=_runtime_env())(_import_work)
    for _ in range(min(int(ray.cluster_resources().get("CPU", 1)), _EARLY_WORKERS)):
        task.remote(work)


def run_pieces(
    work: Callable[[int, *Shared], Result],
    count: int,
    *shared: *Shared,
    on_result: Callable[[Result], None] | None = None,
    here: bool = False,
    gpu: bool = False,
    at_once: int | None = None,
) -> list[Result]:
    """Returns `[work(0, *shared), …, work(count - 1, *shared)]`; each piece is a Ray task of one CPU.

    A piece whose worker process dies is run again, so `work` must be idempotent.

    Args:
        work: a function of an importable module.
        shared: arguments of all pieces, sent to each node once.
        on_result: called in this process with each result as soon as it is there.
        here: run the pieces one after the other in this process, without Ray.
        gpu: a piece takes a GPU as well as a CPU.
        at_once: the most pieces that run at a time; as many as the cluster has room for when None.
    Raises:
        UserError: a piece raised one, or the cluster was lost.
    """
    if here:
        return [_run_here(work, index, shared, on_result) for index in range(count)]
    join_ray()
    import ray

    # Settings hold secrets; they travel as an object because Ray's dashboard shows the runtime environment.
    environment = ray.put(get_settings().export())
    references = [ray.put(value) for value in shared]
    task = _remote(_run_piece, gpu)
    window = at_once or max(2 * int(ray.cluster_resources().get("CPU", 1)), 2)
    results: dict[int, Result] = {}
    running: dict[ray.ObjectRef, int] = {}
    try:
        with _task_errors():
            waiting = iter(range(count))
            while len(results) < count:
                while len(running) < window and (index := next(waiting, None)) is not None:
                    running[task.remote(work, environment, index, *references)] = index
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    index = running.pop(reference)
                    results[index] = ray.get(reference)
                    if on_result is not None:
                        on_result(results[index])
    finally:
        for reference in running:
            with contextlib.suppress(Exception):
                ray.cancel(reference)
    return [results[index] for index in range(count)]


class BackgroundTask(Generic[Result]):
    """`work(*arguments)` as a Ray task of one CPU, which runs while the caller does something else.

    It waits for a free processor. If its worker process dies, it is run again, so `work` must be idempotent.

    Args:
        work: a function of an importable module.
        gpu: it takes a GPU as well as a CPU.
    Raises:
        UserError: no cluster is named, or it does not answer.
    """

    def __init__(self, work: Callable[[*Shared], Result], *arguments: *Shared, gpu: bool = False) -> None:
        join_ray()
        import ray

        environment = ray.put(get_settings().export())
        # Not among the resources of the caller's own group of workers, which has none to spare.
        task = _remote(_run_whole, gpu).options(scheduling_strategy="DEFAULT")
        self._reference = task.remote(work, environment, *arguments)

    def is_done(self, timeout: float = 0.0) -> bool:
        """Waits for the task's end, `timeout` seconds at most; returns True once it has ended."""
        import ray

        return bool(ray.wait([self._reference], timeout=timeout)[0])

    def result(self) -> Result:
        """Waits for the result.

        Raises:
            UserError: the work raised one, or the cluster was lost.
        """
        import ray

        with _task_errors():
            result: Result = ray.get(self._reference)
            return result

    def cancel(self) -> None:
        """Ends the task, even while it runs."""
        import ray

        with contextlib.suppress(Exception):
            ray.cancel(self._reference, force=True)


def _remote(function: Callable[..., object], gpu: bool) -> Any:
    """The Ray task of a function. Ray's annotations have no place for a generic one."""
    import ray

    options: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(gpu), "max_retries": _MAX_RETRIES}
    return ray.remote(**options, runtime_env=_runtime_env())(function)


@contextlib.contextmanager
def _task_errors() -> Iterator[None]:
    """Raises the `UserError` of a task, or one that says that the task was lost."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise UserError(
            f"Ray lost a task ({first_line(error)}): run the same command again, and it keeps the finished "
            "pieces"
        ) from error


def _run_here(
    work: Callable[[int, *Shared], Result],
    index: int,
    shared: tuple[*Shared],
    on_result: Callable[[Result], None] | None,
) -> Result:
    result = work(index, *shared)
    if on_result is not None:
        on_result(result)
    return result


def _runtime_env() -> dict[str, dict[str, str]]:
    """Returns the runtime environment in which workers can import the packages, installed or not."""
    # A relative PYTHONPATH makes `__file__` relative too, and workers have another current folder.
    packages = [Path(str(module.__file__)).resolve().parents[1] for module in (mimic3d, mimic3d_platform)]
    given = map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    roots = dict.fromkeys([*map(str, packages), *given])
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(roots)}}


def _import_work(work: Callable[..., object]) -> None:
    """Does nothing: unpickling the argument imports the module of `work`."""


def _run_piece(
    work: Callable[[int, *Shared], Result], environment: dict[str, str], index: int, *shared: *Shared
) -> Result:
    use_services_of(environment)
    return work(index, *shared)


def _run_whole(work: Callable[[*Shared], Result], environment: dict[str, str], *arguments: *Shared) -> Result:
    use_services_of(environment)
    return work(*arguments)
