"""The stored state of the services, `<home>/stack`: ports, pids, credentials; and the lock that guards it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mimic3d_platform.errors import UserError
from mimic3d_platform.local.processes import Leader
from mimic3d_platform.settings import stack_file
from mimic3d_platform.storage import atomic_file

LOCK_PATIENCE_S = 180.0
# A killed process keeps its ports until its last thread has ended.
PORTS_PATIENCE_S = 5.0

# Below the ports that Linux gives to outgoing connections, so that a port stays free between `down` and `up`;
# above those of well-known servers.
_PORTS = range(20000, 32000)

# Ray's sockets lie up to 68 characters below its folder, and a socket's path has at most 107 characters.
_LONGEST_RUNTIME = 34


@dataclass
class Service:
    """The record of one service."""

    ports: dict[str, int] = field(default_factory=dict)
    """The port of each listener, by its name."""
    leader: Leader | None = None
    """Its first process, if it was started and not stopped since."""
    ready: bool = False
    """Whether it has answered a request since it was started."""


@dataclass
class Stack:
    """The state of the services under `home`, stored in `<home>/stack/state.json`."""

    home: Path
    services: dict[str, Service] = field(default_factory=dict)
    runtime: Path | None = None
    """A private folder with a short path, for sockets and Ray's session files."""

    @property
    def folder(self) -> Path:
        """The private folder of state, data and logs."""
        return self.home / "stack"

    def log(self, service: str) -> Path:
        """Returns the file that gets a service's output."""
        return self.folder / "logs" / f"{service}.log"

    def service(self, name: str) -> Service:
        """Returns a service's record, an empty one if it has none yet."""
        return self.services.setdefault(name, Service())

    def save(self) -> None:
        """Writes the state file atomically."""
        document = {
            "runtime": str(self.runtime) if self.runtime else None,
            "services": {
                name: {
                    "ports": service.ports,
                    "leader": asdict(service.leader) if service.leader else None,
                    "ready": service.ready,
                }
                for name, service in self.services.items()
            },
        }
        write_private(self.folder / "state.json", json.dumps(document, indent=1))

    @classmethod
    def load(cls, home: Path) -> Stack:
        """Reads the state file; returns an empty state if there is none.

        Raises:
            UserError: the file is damaged or cannot be read.
        """
        stack = cls(home)
        path = stack.folder / "state.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            stack.runtime = Path(document["runtime"]) if document["runtime"] else None
            for name, record in document["services"].items():
                leader = Leader(**record["leader"]) if record.get("leader") else None
                stack.services[name] = Service(record["ports"], leader, record["ready"])
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(
                f"cannot read the stack's state {path}: {error.strerror}; correct its permissions"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"the stack's state {path} is damaged; end its processes (they have {home} in their command "
                "lines), delete this file, and run `mimic3d up`"
            ) from None
        return stack


@contextlib.contextmanager
def locked(home: Path, patience_s: float = LOCK_PATIENCE_S) -> Iterator[Stack]:
    """Yields the state, which no other process changes during the block; creates the private folders.

    Raises:
        UserError: the folder cannot be created, or another `up` or `down` takes longer than `patience_s`.
    """
    folder = home / "stack"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / "logs").mkdir(exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})"
        raise UserError(f"cannot keep the stack's state in {folder}: {reason}; set MIMIC3D_HOME") from None
    try:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"another `mimic3d up` or `down` has held {folder / 'lock'} for {patience_s:.0f} s; "
                        "wait for it or end it"
                    ) from None
                time.sleep(0.2)
        yield Stack.load(home)
    finally:
        os.close(handle)  # This also releases the lock.


def free_ports(
    names: list[str], wanted: Mapping[str, int], taken: set[int], patience_s: float = PORTS_PATIENCE_S
) -> dict[str, int]:
    """Returns a free port of 127.0.0.1 for each name: the wanted ones if all are free, else new ones for all.

    Args:
        wanted: the ports of last time.
        taken: ports that must not be used; the returned ones are added.
        patience_s: how long to wait for the wanted ports to become free.
    Raises:
        UserError: too few ports are free.
    """
    if set(wanted) == set(names) and _become_free(wanted.values(), patience_s):
        taken.update(wanted.values())
        return dict(wanted)
    chosen: dict[str, int] = {}
    for name in names:
        for port in random.sample(_PORTS, 1000):
            if port not in taken and is_free(port):
                chosen[name] = port
                taken.add(port)
                break
        else:
            raise UserError(f"no free port between {_PORTS.start} and {_PORTS.stop}; close some servers")
    return chosen


def _become_free(ports: Collection[int], patience_s: float) -> bool:
    """Waits until all ports are free, for at most `patience_s`; returns whether they are."""
    deadline = time.monotonic() + patience_s
    while not all(is_free(port) for port in ports):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def is_free(port: int) -> bool:
    """Whether a server could listen on this port, on loopback and on all interfaces."""
    for address in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def credentials(stack: Stack) -> dict[str, str]:
    """Returns the stack's secrets by the names of their variables; generates those that are missing."""
    path = stack.folder / "credentials.json"
    try:
        kept = dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        kept = {}
    generated = {
        "AWS_ACCESS_KEY_ID": "M3D" + secrets.token_hex(10).upper(),
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "WEED_SIGNING_KEY": secrets.token_urlsafe(32),
        "MLFLOW_TRACKING_PASSWORD": secrets.token_urlsafe(24),
        "MLFLOW_SESSION_KEY": secrets.token_urlsafe(32),
    }
    if generated.keys() - kept.keys():
        kept = generated | kept
        write_private(path, json.dumps(kept, indent=1))
    return kept


def write_environment(stack: Stack, environment: Mapping[str, str]) -> None:
    """Writes the addresses and keys to the file that `settings.get_settings` reads."""
    write_private(stack_file(stack.home), json.dumps(dict(environment), indent=1))


def write_private(path: Path, text: str) -> None:
    """Writes a file atomically, readable by its owner only.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with atomic_file(path, private=True) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or set MIMIC3D_HOME"
        ) from None


def make_runtime(stack: Stack) -> Path:
    """Returns the folder of sockets and Ray's session files; creates it if it does not exist."""
    if stack.runtime is None or not stack.runtime.is_dir():
        base = tempfile.gettempdir()
        if len(base) > _LONGEST_RUNTIME - len("/m3d-xxxxxxxx/ray"):
            base = "/tmp"
        stack.runtime = Path(tempfile.mkdtemp(prefix="m3d-", dir=base))
    return stack.runtime


def delete_runtime(stack: Stack) -> None:
    """Deletes the folder of sockets, which no stopped service needs."""
    if stack.runtime is not None:
        shutil.rmtree(stack.runtime, ignore_errors=True)
        stack.runtime = None


def last_error(log: Path) -> str:
    """Returns the last line of a log that looks like an error, else its last line; 200 characters at most."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace")[-20000:].splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    marks = ("rror", "atal", "panic", "in use", "denied")
    errors = [line for line in lines if any(mark in line for mark in marks)]
    return (errors or lines or [""])[-1][:200]
