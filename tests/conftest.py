"""Real services for the tests that want them; none of the user's own is ever touched."""

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

# Ray reads this on import, which a test module may do before the stack is up; see local.services.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
torch.set_num_threads(1)
# A shell that starts the tests in the background has them ignore Ctrl-C, and with them all commands tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SERVICES = ("AWS_", "MLFLOW_", "RAY_AUTH_", "RAY_ADDRESS", "MIMIC3D_")


@pytest.fixture(scope="session", autouse=True)
def own_home() -> Iterator[Path]:
    """A state folder of the session's own, and an environment that names no service of the user's.

    Weights of feature networks that the user has fetched before are used, not fetched again.
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
    """The embedded stack, up for the whole session, with the environment set so that all find it."""
    status = local.up(own_home, cpus=2)
    before = dict(os.environ)
    use_services()
    yield status
    import ray

    ray.shutdown()  # A process that has joined the cluster is ended by Ray when the head goes.
    os.environ.clear()
    os.environ.update(before)
    processes = stack_processes(own_home)
    local.down(own_home)
    assert not alive(processes), "processes of the stack outlived `down`"


@pytest.fixture
def s3_folder(stack: local.StackStatus) -> Iterator[str]:
    """A fresh folder in object storage, as a URI; gone after the test."""
    uri = f"s3://mimic3d/test-{uuid.uuid4().hex[:12]}"
    yield uri
    storage.delete_tree(uri)
