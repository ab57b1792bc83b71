"""Fixtures of real services, apart from the user's own."""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mimic3d_platform import local, storage
from mimic3d_platform.settings import default_home, use_services
from stack_processes import alive, stack_processes

# Ray reads this on import, possibly before the stack is up; see local.services.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
torch.set_num_threads(1)
# Tests started in the background of a shell ignore SIGINT, and so would the commands that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SERVICES = ("AWS_", "MLFLOW_", "RAY_AUTH_", "RAY_ADDRESS", "MIMIC3D_")


@pytest.fixture(scope="session", autouse=True)
def own_home() -> Iterator[Path]:
    """The session's state folder, in an environment without the user's services.

    Feature networks' weights that the user has fetched before are used.
    """
    kept = {name: value for name, value in os.environ.items() if name.startswith(_SERVICES)}
    weights = default_home() / "weights"
    for name in kept:
        del os.environ[name]
    if weights.is_dir():
        os.environ["MIMIC3D_WEIGHTS"] = str(weights)
    home = Path(tempfile.mkdtemp(prefix="m3d-test-", dir="/tmp"))
    os.environ["MIMIC3D_HOME"] = str(home)
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        os.environ[variable] = str(home / "no-file-of-aws")
    yield home
    shutil.rmtree(home, ignore_errors=True)
    for name in [name for name in os.environ if name.startswith(_SERVICES)]:
        del os.environ[name]
    os.environ.update(kept)


@pytest.fixture(scope="session")
def stack(own_home: Path) -> Iterator[local.StackStatus]:
    """The local stack, running for the whole session and named in the environment."""
    status = local.up(own_home, cpus=2)
    before = dict(os.environ)
    use_services()
    yield status
    import ray

    ray.shutdown()  # Ray ends processes that are connected to a head that stops.
    os.environ.clear()
    os.environ.update(before)
    processes = stack_processes(own_home)
    local.down(own_home)
    assert not alive(processes), "processes of the stack outlived `down`"


@pytest.fixture
def s3_folder(stack: local.StackStatus) -> Iterator[str]:
    """The URI of an empty folder in object storage, deleted after the test."""
    uri = f"s3://mimic3d/test-{uuid.uuid4().hex[:12]}"
    yield uri
    storage.delete_tree(uri)
