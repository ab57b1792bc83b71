"""Starts and stops the processes of services, each service in a POSIX session of its own.

A session has a leader, which this module starts and records by pid and start time, and every process that the
leader starts. It outlives its leader: after `kill -9` the orphans keep the session's number, and the kernel
gives no new process a pid that names a session. So orphans are found, and no other process is ever stopped.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_S = 0.1

# The child reads a line before it becomes the service, so that no service runs unrecorded: if this process
# dies after starting the child and before recording its pid, the child reads the end of its input and exits.
_WAIT_FOR_LINE = ("/bin/sh", "-c", 'read -r word && exec "$@" < /dev/null', "sh")


@dataclass(frozen=True)
class Leader:
    """The session leader of a service, which may have died.

    Attributes:
        pid: of the process.
        started: when it started, in seconds since the machine did: the clock may be set meanwhile.
        boot: the kernel's id of this start of the machine.
    """

    pid: int
    started: float
    boot: str

    @classmethod
    def of(cls, pid: int) -> Leader:
        """Records a process that lives."""
        return cls(pid, _started(psutil.Process(pid)), _boot_id())

    def process(self) -> psutil.Process | None:
        """Returns the leader's process; None if it is dead, also if another process has its pid."""
        try:
            process = psutil.Process(self.pid)
            return process if self._is(process) and _is_alive(process) else None
        except psutil.Error:
            return None

    def members(self) -> list[psutil.Process]:
        """Returns all living processes of the service, the leader first; also if the leader is dead."""
        leader = self.process()
        if leader is None and (self.boot != _boot_id() or self._pid_is_reused()):
            return []
        members = [leader] if leader else []
        for process in psutil.process_iter():
            try:
                in_session = process.pid != self.pid and os.getsid(process.pid) == self.pid
                if in_session and _started(process) >= self.started - 1.0 and _is_alive(process):
                    members.append(process)
            except (OSError, psutil.Error):
                continue
        for member in list(members):  # A descendant may have started a session of its own.
            try:
                members += [p for p in member.children(recursive=True) if p not in members and _is_alive(p)]
            except psutil.Error:
                continue
        return members

    def _is(self, process: psutil.Process) -> bool:
        return self.boot == _boot_id() and abs(_started(process) - self.started) < 1.0

    def _pid_is_reused(self) -> bool:
        """Whether another process has the leader's pid."""
        try:
            return not self._is(psutil.Process(self.pid))
        except psutil.Error:
            return False


class WaitingProcess:
    """A service's process that waits until `release` is called before it runs the service.

    Args:
        command: of the service.
        env: the whole environment.
        cwd: the working directory.
        log: the file, readable by its owner only, that gets both output streams.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        with open(log, "ab", opener=_open_private) as stream:
            self._popen = subprocess.Popen(
                [*_WAIT_FOR_LINE, *command],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        self.leader = Leader.of(self._popen.pid)

    def release(self) -> None:
        """Lets the process become the service."""
        pipe = self._popen.stdin
        assert pipe is not None
        pipe.write(b"go\n")
        pipe.close()
        _CHILDREN.append(self._popen)


# Children of this process that `reap` polls; a dead child that is not polled remains a zombie.
_CHILDREN: list[subprocess.Popen[bytes]] = []


def stop(leaders: Iterable[Leader], patience_s: float = 10.0) -> int:
    """Stops services: sends each leader SIGTERM, waits, then kills every process that is left.

    Args:
        patience_s: how long the processes may take to exit before they are killed.
    Returns:
        The number of processes that had to be killed.
    """
    leaders = list(leaders)
    members = {process for leader in leaders for process in leader.members()}
    for leader in leaders:
        if process := leader.process():
            _signal(process.terminate)
    _wait(members, patience_s, [leader for leader in leaders if leader.process()])
    killed = 0
    for _ in range(5):  # A process that is being killed may have started another.
        members = {process for leader in leaders for process in leader.members()} | set(
            filter(_is_alive, members)
        )
        if not members:
            break
        for process in members:
            _signal(process.kill)
        killed += len(members)
        _wait(members, 3.0, [])
    return killed


def reap() -> None:
    """Removes dead children of this process from the process table."""
    _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None]


def _wait(members: Iterable[psutil.Process], seconds: float, leaders: Sequence[Leader]) -> None:
    """Waits until all members are dead, for at most `seconds`; at most 1 s after the last leader has died."""
    deadline = time.monotonic() + seconds
    orphans_deadline = None
    while time.monotonic() < deadline and any(_is_alive(process) for process in members):
        reap()
        if leaders and orphans_deadline is None and not any(leader.process() for leader in leaders):
            orphans_deadline = time.monotonic() + 1.0
        if orphans_deadline and time.monotonic() > orphans_deadline:
            return
        time.sleep(POLL_S)


def _is_alive(process: psutil.Process) -> bool:
    """Whether the process runs; a zombie does not, though it keeps its pid until its parent reaps it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _started(process: psutil.Process) -> float:
    """When a process started, in seconds since the machine did."""
    return process.create_time() - psutil.boot_time()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def _signal(send: Callable[[], object]) -> None:
    """Sends a signal; the process may have exited meanwhile."""
    with contextlib.suppress(psutil.Error):
        send()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
