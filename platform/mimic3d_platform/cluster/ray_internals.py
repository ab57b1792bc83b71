"""Holds every private name of Ray that this project uses, with the module it comes from and why it is needed.

No other file imports from `ray._private`, `ray._raylet` or an `_internal` package. `pyproject.toml` bounds
Ray's version from above; whoever raises the bound has to check the names of this file.

Private methods that are overridden elsewhere:

- `JobSubmissionClient._do_request` (`cluster/dashboard.py`): the public methods take no time limit.
- `TorchTrainer._initialize_and_run_controller` and `ElasticScalingPolicy._count_possible_workers`
  (`cluster/elastic_trainer.py`): Ray Train has no argument for a scaling policy.

A name is imported when it is first used, so that a process that only joins a cluster does not load Ray Train.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray._private.node import Node as Node
    from ray._private.parameter import RayParams as RayParams
    from ray._raylet import AuthenticationTokenLoader as AuthenticationTokenLoader  # type: ignore[attr-defined]
    from ray._raylet import Config as Config  # type: ignore[attr-defined]
    from ray.train.v2._internal.execution.callback import WorkerCallback as WorkerCallback
    from ray.train.v2._internal.execution.context import get_train_context as get_train_context
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy as ElasticScalingPolicy
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE as ENV_VARS_TO_PROPAGATE

_MODULES = {
    # `ray start` refuses a second node on the loopback address; `cluster/ray_node.py` starts one with these.
    "Node": "ray._private.node",
    "RayParams": "ray._private.parameter",
    # Ray caches the authentication mode and the token it reads first; `cluster/connect.py` makes it read both
    # again, because `mimic3d up` may have started a cluster with a token since.
    "AuthenticationTokenLoader": "ray._raylet",
    "Config": "ray._raylet",
    # Ray Train has no public way to restrict the worker counts of an elastic run to divisors of the batch.
    "ElasticScalingPolicy": "ray.train.v2._internal.execution.scaling_policy",
    # Ray Train's public callbacks run in its controller. A handler of SIGTERM has to be set in each worker's
    # main thread before the training function starts in another; `cluster/train_workers.py` uses this one.
    "WorkerCallback": "ray.train.v2._internal.execution.callback",
    # `ray.train.get_preemption_info()` is public, but a barrier of all workers through the controller, slower
    # than a small training step; `training/stop_signals.py` reads the same from the context.
    "get_train_context": "ray.train.v2._internal.execution.context",
    # Ray Tune copies these variables into its trials' runtime environment, which Ray logs and displays;
    # `tuning/ray_tune.py` takes the keys of storage out.
    "ENV_VARS_TO_PROPAGATE": "ray.tune.execution.class_cache",
}

# Loggers of Ray's job client that report each upload and each missing token, which our own messages cover.
CLIENT_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.authentication.http_token_authentication",
    "ray._private.runtime_env.packaging",
)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(_MODULES[name]), name)
