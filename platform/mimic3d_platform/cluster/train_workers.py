"""Ray Train: runs one function on a group of workers, and turns its failures into errors of one line.

Loads Ray Train and PyTorch: import it where workers are about to be started.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.train.torch import TorchConfig
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from mimic3d_platform import storage
from mimic3d_platform.cluster.elastic_trainer import EqualSharesTrainer
from mimic3d_platform.cluster.ray_internals import WorkerCallback
from mimic3d_platform.cluster.resources import WorkerPlan
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings, use_services_of

Arguments = TypeVar("Arguments")
Result = TypeVar("Result")

# Ray retries a controller that fails to start for ever by default.
MAX_CONTROLLER_FAILURES = 5
# Workers that load PyTorch on a busy machine, or wait for a node to start, need more than Ray's 60 s.
START_TIMEOUT_S = 300
# Ray counts a node that has just gone until it misses its heartbeats: elastic runs soon try again without it.
ELASTIC_START_TIMEOUT_S = 90
# How often an elastic run looks for more room. Growing costs a restart from the last checkpoint.
RESIZE_S = 300.0
# glibc returns large blocks to the system after each use; a CPU worker spends a third of its time on the
# page faults of getting them back.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


class WorkersFailedError(RuntimeError):
    """Workers failed more often than they may. The message is the last line of the first worker's error."""


class _WorkerStartCallback(WorkerCallback):
    """Calls a function in the main thread of each worker process before its training function starts."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def after_init_train_context(self) -> None:
        self._function()


@dataclass(frozen=True)
class _WorkerCall(Generic[Arguments]):
    """The arguments of a worker process."""

    function: Callable[[Arguments], object]
    arguments: Arguments
    threads: int
    """For PyTorch."""
    environment: tuple[ray.ObjectRef, ...]
    """The services' settings. They hold secrets: as an object they show on no page of Ray's dashboard."""


def run_train_workers(
    function: Callable[[Arguments], Result],
    arguments: Arguments,
    *,
    name: str,
    storage_uri: str,
    plan: WorkerPlan,
    max_failures: int,
    callbacks: Sequence[UserCallback] = (),
    on_worker_start: Callable[[], None] | None = None,
) -> Result:
    """Runs `function(arguments)` on each worker of `plan` until all have returned; returns rank 0's result.

    Workers have the services' settings in their environment. When one fails, Ray Train ends the others and
    calls the function again in a new group of workers.

    Args:
        function: of an importable module; it may use `ray.train` and `torch.distributed`.
        arguments: a frozen dataclass, sent to the workers as a pickle.
        name: of Ray Train's run.
        storage_uri: where Ray Train keeps its own state.
        max_failures: groups of workers that may fail before this call does.
        on_worker_start: called in each worker process's main thread, where signal handlers can be set.
    Raises:
        UserError: a worker raised one.
        WorkersFailedError: the workers failed of anything else.
    """
    timeout = ELASTIC_START_TIMEOUT_S if plan.elastic else START_TIMEOUT_S
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(timeout))
    # Without it, the page "Train" of Ray's dashboard answers with an error.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    filesystem, path = storage.arrow_filesystem(storage_uri)
    call = _WorkerCall(function, arguments, plan.threads, (ray.put(get_settings().export()),))
    all_callbacks: list[Any] = list(callbacks)  # Ray annotates public ones only, and takes both kinds.
    if on_worker_start is not None:
        all_callbacks.append(_WorkerStartCallback(on_worker_start))
    trainer = EqualSharesTrainer(
        _run_call,
        train_loop_config={"call": call},
        counts=plan.counts,
        torch_config=TorchConfig(backend="nccl" if plan.gpu else "gloo"),
        scaling_config=_scaling_config(plan),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=max_failures, controller_failure_limit=MAX_CONTROLLER_FAILURES
            ),
            callbacks=all_callbacks,
            worker_runtime_env={"env_vars": ({} if plan.gpu else _MALLOC) | _temporary_folder()},
        ),
    )
    try:
        result: Any = trainer.fit()
    except TrainingFailedError as error:
        raise _unwrapped(error) from error
    return result.return_value


def _run_call(config: dict[str, _WorkerCall[Any]]) -> object:
    call = config["call"]
    use_services_of(ray.get(call.environment[0]))
    torch.set_num_threads(call.threads)
    return call.function(call.arguments)


def _scaling_config(plan: WorkerPlan) -> ScalingConfig:
    return ScalingConfig(
        num_workers=(plan.least, plan.most) if plan.elastic else plan.least,
        use_gpu=plan.gpu,
        resources_per_worker={"GPU": 1} if plan.gpu else {"CPU": 1},
        elastic_resize_monitor_interval_s=RESIZE_S,
    )


def _temporary_folder() -> dict[str, str]:
    """TMPDIR, where it is set: workers write their checkpoints there before they are stored."""
    return {"TMPDIR": os.environ["TMPDIR"]} if os.environ.get("TMPDIR") else {}


def _unwrapped(error: TrainingFailedError) -> UserError | WorkersFailedError:
    """The `UserError` of a worker if there is one, else the last line of the first error with a message."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = [cause for failure in (*failures.values(), error) for cause in _chain(failure)]
    for cause in causes:
        if isinstance(cause, UserError):
            return UserError(str(cause))
    message = next((str(cause).strip() for cause in causes if str(cause).strip()), type(error).__name__)
    return WorkersFailedError(message.splitlines()[-1].strip())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, of Ray's kind and of Python's."""
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__
