"""What the stack remembers in `<home>/stack`: ports, pids, credentials; and the lock around changing it."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimic3d_platform.errors import UserError
from mimic3d_platform.local.processes import Leader
from mimic3d_platform.settings import stack_file
from mimic3d_platform.storage import atomic_file

LOCK_PATIENCE_S = 180.0
# A process that was killed is a zombie before its last thread lets go of its ports.
PORTS_PATIENCE_S = 5.0

# Below the range from which Linux takes ports for outgoing connections, so that a port stays free over a
# `down`; above those that well-known servers use.
_PORTS = range(20000, 32000)

# Ray's sockets lie up to 68 characters below its folder, and a socket's path has at most 107.
_LONGEST_RUNTIME = 34


@dataclass
class Service:
    """What is remembered of one service: the port of each of its listeners, and who runs it."""

    ports: dict[str, int] = field(default_factory=dict)
    leader: Leader | None = None
    ready: bool = False  # It has answered since it was started.


@dataclass
class Stack:
    """The state of one stack, `<home>/stack/state.json`; `runtime` is a short private folder for sockets."""

    home: Path
    services: dict[str, Service] = field(default_factory=dict)
    runtime: Path | None = None

    @property
    def folder(self) -> Path:
        return self.home / "stack"

    def log(self, service: str) -> Path:
        """The file that holds what a service prints."""
        return self.folder / "logs" / f"{service}.log"

    def service(self, name: str) -> Service:
        return self.services.setdefault(name, Service())

    def save(self) -> None:
        """Write the state; a reader sees the old one or the new one."""
        document = {
            "version": 1,
            "runtime": str(self.runtime) if self.runtime else None,
            "services": {
                name: {
                    "ports": service.ports,
                    "pid": service.leader.pid if service.leader else None,
                    "created": service.leader.created if service.leader else None,
                    "ready": service.ready,
                }
                for name, service in self.services.items()
            },
        }
        write_private(self.folder / "state.json", json.dumps(document, indent=1))

    @classmethod
    def load(cls, home: Path) -> "Stack":
        """Read the state; a stack that never was is empty.

        Raises:
            UserError: the file is damaged or cannot be read.
        """
        stack = cls(home)
        path = stack.folder / "state.json"
        try:
            document = json.loads(path.read_text())
            stack.runtime = Path(document["runtime"]) if document["runtime"] else None
            for name, known in document["services"].items():
                leader = Leader(known["pid"], known["created"]) if known["pid"] else None
                stack.services[name] = Service(known["ports"], leader, known["ready"])
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(
                f"cannot read the stack's state {path}: {error.strerror}; correct its rights"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"the stack's state {path} is damaged; end its processes (they have {home} in their command "
                "lines), delete this file, and run `mimic3d up`"
            ) from None
        return stack


@contextlib.contextmanager
def locked(home: Path, patience_s: float = LOCK_PATIENCE_S) -> Iterator[Stack]:
    """The stack's state, for one changer at a time; makes the private folders.

    Raises:
        UserError: the folder cannot be made, or another `up` or `down` does not finish.
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
        os.close(handle)  # Also lets go of the lock.


def free_ports(
    names: list[str], wanted: Mapping[str, int], taken: set[int], patience_s: float = PORTS_PATIENCE_S
) -> dict[str, int]:
    """A free port of 127.0.0.1 for each name: those wanted if every one is free, else fresh ones for all.

    Args:
        patience_s: how long those wanted are waited for.
    """
    if set(wanted) == set(names) and _come_free(wanted.values(), patience_s):
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


def _come_free(ports: Collection[int], patience_s: float) -> bool:
    """Whether all are free, now or within `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not all(is_free(port) for port in ports):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def is_free(port: int) -> bool:
    """Whether a server could listen on this port, on loopback and on every interface."""
    for address in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def credentials(stack: Stack) -> dict[str, str]:
    """The stack's secrets by the names of their variables; made afresh the first time, then kept."""
    path = stack.folder / "credentials.json"
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, ValueError):
        made = {
            "AWS_ACCESS_KEY_ID": "M3D" + secrets.token_hex(10).upper(),
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "WEED_SIGNING_KEY": secrets.token_urlsafe(32),
        }
        write_private(path, json.dumps(made, indent=1))
        return made


def write_environment(stack: Stack, environment: Mapping[str, str]) -> None:
    """Leave the addresses and keys where `settings.get_settings` finds them."""
    write_private(stack_file(stack.home), json.dumps(dict(environment), indent=1))


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner only."""
    try:
        with atomic_file(path, private=True) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or set MIMIC3D_HOME"
        ) from None


def make_runtime(stack: Stack) -> Path:
    """The short private folder for sockets and Ray's session files; made anew where it is gone."""
    if stack.runtime is None or not stack.runtime.is_dir():
        base = tempfile.gettempdir()
        if len(base) > _LONGEST_RUNTIME - len("/m3d-xxxxxxxx/ray"):
            base = "/tmp"
        stack.runtime = Path(tempfile.mkdtemp(prefix="m3d-", dir=base))
    return stack.runtime


def drop_runtime(stack: Stack) -> None:
    """Delete the folder of sockets; nothing in it outlives the processes."""
    if stack.runtime is not None:
        shutil.rmtree(stack.runtime, ignore_errors=True)
        stack.runtime = None


def tail(path: Path, marks: tuple[str, ...] = ("rror", "atal", "panic", "in use", "denied")) -> str:
    """The last line of a log that tells of trouble, else its last line, cut to a readable length."""
    try:
        lines: list[Any] = path.read_text(errors="replace")[-20000:].splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    telling = [line for line in lines if any(mark in line for mark in marks)]
    return (telling or lines or [""])[-1][:200]
