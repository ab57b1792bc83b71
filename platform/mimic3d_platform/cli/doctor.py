"""Checks of this machine and its services, each with a remedy where it fails (`mimic3d doctor`)."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psutil

from mimic3d.export.ffmpeg import find_ffmpeg, run_ffmpeg
from mimic3d_platform import local, storage
from mimic3d_platform.errors import one_line
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.settings import default_home, get_settings

State = Literal["ok", "warn", "missing"]

# Seconds after which a check that has not ended is reported as such.
CHECK_PATIENCE_S = 9.0
_REQUEST_TIMEOUT_S = 3.0
_GB = 1000**3


@dataclass(frozen=True)
class Finding:
    """The result of one check: the state of a part, what was found, and a remedy if it is not usable."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Runs all checks in parallel, for at most `CHECK_PATIENCE_S`; a check that raises is a finding too."""
    results: dict[str, list[Finding]] = {}

    def run(name: str, check: Callable[[], list[Finding]]) -> None:
        try:
            results[name] = check()
        except (TimeoutError, subprocess.TimeoutExpired):
            results[name] = [_late(name)]
        except Exception as error:
            results[name] = [Finding(name, "missing", one_line(error, 300), _REMEDIES.get(name, ""))]

    deadline = time.monotonic() + CHECK_PATIENCE_S
    # Daemon threads, so that the process can end while one hangs (a dead network drive, a name look-up).
    threads = [threading.Thread(target=run, args=item, daemon=True) for item in _CHECKS.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [finding for name in _CHECKS for finding in results.get(name, [_late(name)])]


def _late(name: str) -> Finding:
    """The finding of a check that has not ended: the machine, a drive or a server is busy."""
    return Finding(name, "warn", f"no answer within {CHECK_PATIENCE_S:.0f} s", _BUSY)


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [Finding("Python", "ok", f"{version} at {sys.executable}")]


def _torch() -> list[Finding]:
    import torch

    detail = f"{torch.__version__}, {torch.get_num_threads()} threads, CUDA {torch.version.cuda or 'none'}"
    found = [Finding("torch", "ok", detail)]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            found.append(Finding("GPU", "ok", f"{device.name}, {device.total_memory / _GB:.0f} GB"))
    elif shutil.which("nvidia-smi"):
        remedy = "install a torch build for this machine's driver"
        found.append(Finding("GPU", "warn", "a driver is installed but torch cannot use the GPU", remedy))
    else:
        remedy = "none is needed for `cars-demo`; `cars64` and `cars128` need a CUDA GPU"
        found.append(Finding("GPU", "warn", "none, training runs on the CPU", remedy))
    return found


def _ray() -> list[Finding]:
    version = importlib.metadata.version("ray")
    address = get_settings().ray_address
    if not address:
        return [Finding("Ray", "warn", f"{version}, no cluster is named", _REMEDIES["Ray"])]
    stack = local.status().services["ray"]
    if stack.healthy:
        return [Finding("Ray", "ok", f"{version}, cluster at {address}, dashboard {stack.url}")]
    if "://" in address or ":" not in address:  # `ray://…`, or a name such as `auto` that Ray resolves.
        return [Finding("Ray", "warn", f"{version}, {address} is not checked", "")]
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_REQUEST_TIMEOUT_S).close()
    except TimeoutError:
        raise
    except OSError:
        return [Finding("Ray", "missing", f"{version}, nothing answers at {address}", _REMEDIES["Ray"])]
    return [Finding("Ray", "ok", f"{version}, cluster at {address}")]


def _s3() -> list[Finding]:
    settings = get_settings()
    where = settings.s3_endpoint or "Amazon S3"
    if not settings.s3_endpoint and not settings.aws_access_key_id:
        return [Finding("S3", "warn", "no endpoint and no credentials are set", _REMEDIES["S3"])]
    with storage.translate_errors("s3://", "list the buckets of"):
        buckets = [bucket["Name"] for bucket in storage.s3_client().list_buckets()["Buckets"]]
    return [Finding("S3", "ok", f"{where}, buckets: {', '.join(buckets) or 'none'}")]


def _mlflow() -> list[Finding]:
    version = importlib.metadata.version("mlflow")
    uri = get_settings().mlflow_tracking_uri
    if not uri:
        return [Finding("MLflow", "warn", f"{version}, no server is named", _REMEDIES["MLflow"])]
    uri = storage.without_login(uri)  # Its health can be asked without one.
    if not uri.startswith("http"):
        return [Finding("MLflow", "warn", f"{version}, {uri} is not a server and is not checked")]
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_REQUEST_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        detail = f"{version}, {uri} answers with status {error.code}"
        return [Finding("MLflow", "warn", detail, "check MLFLOW_TRACKING_URI and its credentials")]
    except TimeoutError:
        raise
    except OSError as error:
        if isinstance(getattr(error, "reason", None), TimeoutError):
            raise TimeoutError from error
        return [Finding("MLflow", "missing", f"{version}, nothing answers at {uri}", _REMEDIES["MLflow"])]
    return [Finding("MLflow", "ok", f"{version}, server at {uri}")]


def _weights() -> list[Finding]:
    found = []
    for network in feature_weights.describe():
        if network.on_request and not network.ready:
            continue
        name = f"weights {network.name}"
        remedy = (
            "" if network.ready else f"fetched at first use; `mimic3d weights {network.name}` fetches it now"
        )
        state: State = "ok" if network.ready else "warn"
        stand_in = " (stand-in)" if network.stand_in else ""
        found.append(Finding(name, state, f"{network.purpose}{stand_in}, {network.source}", remedy))
    return found


def _disk() -> list[Finding]:
    folder = default_home()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GB
    state: State = "ok" if free >= 10 else "warn" if free >= 3 else "missing"
    remedy = (
        ""
        if state == "ok"
        else "free some space, or set MIMIC3D_HOME to a larger disk; the demo needs about 3 GB"
    )
    return [Finding("disk", state, f"{free:.0f} GB free at {folder}", remedy)]


def _memory() -> list[Finding]:
    memory = psutil.virtual_memory()
    available, total = memory.available / _GB, memory.total / _GB
    state: State = "ok" if available >= 6 else "warn" if available >= 3 else "missing"
    remedy = "" if state == "ok" else "end other programs; the demo needs 8 GB in all"
    return [Finding("memory", state, f"{available:.1f} of {total:.1f} GB available", remedy)]


def _embreex() -> list[Finding]:
    importlib.import_module("embreex.rtcore_scene")
    return [Finding("embreex", "ok", f"{importlib.metadata.version('embreex')}, ray casting")]


def _ffmpeg() -> list[Finding]:
    run = run_ffmpeg("-version", timeout_s=_REQUEST_TIMEOUT_S)
    if run.returncode:
        return [Finding("ffmpeg", "missing", f"{find_ffmpeg()} does not run", _REMEDIES["ffmpeg"])]
    return [Finding("ffmpeg", "ok", f"{run.stdout.split()[2]}, orbit videos")]


_CHECKS: dict[str, Callable[[], list[Finding]]] = {
    "Python": _python,
    "torch": _torch,
    "Ray": _ray,
    "S3": _s3,
    "MLflow": _mlflow,
    "weights": _weights,
    "disk": _disk,
    "memory": _memory,
    "embreex": _embreex,
    "ffmpeg": _ffmpeg,
}

_BUSY = "the machine or its network is busy: run `mimic3d doctor` again"
_SERVICE = "run `mimic3d up` for services on this machine, or set "
_REMEDIES = {
    "torch": "run `make setup`",
    "Ray": _SERVICE + "RAY_ADDRESS",
    "S3": _SERVICE + "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "MLflow": _SERVICE + "MLFLOW_TRACKING_URI",
    "weights": "correct MIMIC3D_WEIGHTS, or run `mimic3d weights --fetch`",
    "embreex": "run `make setup`; meshes are rendered with embreex",
    "ffmpeg": "run `make setup`, or set IMAGEIO_FFMPEG_EXE to an ffmpeg program",
}
