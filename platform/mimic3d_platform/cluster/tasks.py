"""Work split into numbered pieces, run as Ray tasks on the running cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import mimic3d
import mimic3d_platform
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings

Result = TypeVar("Result")

_RETRIES = 2
# Until it is known how much work there is.
_EARLY_WORKERS = 16


def start_workers(work: Callable[..., Any]) -> None:
    """Has Ray start workers for `run_pieces(work, …)`, a few at most, and goes on without waiting for them.

    Raises:
        UserError: no cluster is named, or none answers.
    """
    join_ray()
    import ray

    task = ray.remote(num_cpus=1, runtime_env=_runtime_env())(_load)
    for _ in range(min(int(ray.cluster_resources().get("CPU", 1)), _EARLY_WORKERS)):
        task.remote(work)


def run_pieces(
    work: Callable[..., Result],
    count: int,
    *shared: Any,
    on_result: Callable[[Result], None] | None = None,
    here: bool = False,
) -> list[Result]:
    """`[work(0, *shared), …, work(count - 1, *shared)]`, each a Ray task of one CPU.

    A task whose worker dies is tried again, so `work` has to bear being done twice.

    Args:
        work: a function of an importable module.
        shared: arguments that all pieces get, sent to a node once.
        on_result: called in this process with each result as it comes.
        here: work in this process, a piece after the other, without Ray.
    Raises:
        UserError: what `work` raised of that kind, or the cluster lost.
    """
    if here:
        return [_run_here(work, index, shared, on_result) for index in range(count)]
    join_ray()
    import ray

    # The settings hold secrets: they travel as an object, not in the runtime environment that Ray displays.
    environment = ray.put(get_settings().export())
    references = [ray.put(value) for value in shared]
    task = ray.remote(num_cpus=1, max_retries=_RETRIES, runtime_env=_runtime_env())(_run_piece)
    window = max(2 * int(ray.cluster_resources().get("CPU", 1)), 2)
    results: dict[int, Result] = {}
    running: dict[Any, int] = {}
    try:
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
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except (ray.exceptions.RayError, ConnectionError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"Ray lost a task ({first}): run the same command again, it goes on from here"
        ) from error
    finally:
        for reference in running:
            with contextlib.suppress(Exception):
                ray.cancel(reference)
    return [results[index] for index in range(count)]


def _run_here(
    work: Callable[..., Result],
    index: int,
    shared: tuple[Any, ...],
    on_result: Callable[[Result], None] | None,
) -> Result:
    result = work(index, *shared)
    if on_result is not None:
        on_result(result)
    return result


def _runtime_env() -> dict[str, Any]:
    """Where workers import the packages from: a checkout need not be installed, nor be where they run."""
    packages = [Path(str(module.__file__)).parents[1] for module in (mimic3d, mimic3d_platform)]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    roots = dict.fromkeys([*map(str, packages), *filter(None, given)])
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(roots)}}


def _load(work: Callable[..., Any]) -> None:
    """Loads the modules that `work` comes from, by being given it."""


def _run_piece(work: Callable[..., Result], environment: dict[str, str], index: int, *shared: Any) -> Result:
    os.environ.update(environment)
    return work(index, *shared)
