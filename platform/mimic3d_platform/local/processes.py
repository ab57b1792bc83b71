"""Processes of the stack: started in sessions of their own, known by (pid, creation time), ended as families.

A service is one session: its leader, which we start, and whatever that starts. A session outlives its leader
(after `kill -9` the orphans keep its number) and the kernel gives a pid to nobody else while it names a
session, so the family of a dead leader is still found, and nobody else's process is ever touched.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

POLL_S = 0.1

# The child waits for a line before it becomes the service, so that no service runs unrecorded: were we killed
# between its start and the writing of its pid, it would read the end of its input and leave.
_WAIT_FOR_WORD = ("/bin/sh", "-c", 'read -r word && exec "$@" < /dev/null', "sh")


@dataclass(frozen=True)
class Leader:
    """The first process of a service: its pid, and when it was created (seconds since the epoch)."""

    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """The leader itself, unless it is dead or its pid is another's by now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1.0
            return process if same and _lives(process) else None
        except psutil.Error:
            return None

    def family(self) -> list[psutil.Process]:
        """Every living process of the service, the leader first; orphans of a dead leader as well."""
        leader = self.process()
        if leader is None and (_taken_by_another(self) or self.created < psutil.boot_time()):
            return []
        members = [leader] if leader else []
        for process in psutil.process_iter():
            try:
                in_session = process.pid != self.pid and os.getsid(process.pid) == self.pid
                if in_session and process.create_time() >= self.created - 1.0 and _lives(process):
                    members.append(process)
            except (OSError, psutil.Error):
                continue
        for member in list(members):  # A grandchild may have made a session of its own.
            try:
                members += [p for p in member.children(recursive=True) if p not in members and _lives(p)]
            except psutil.Error:
                continue
        return members


class Starting:
    """A service's process that exists and waits for the word; `go` lets it run."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        with open(log, "ab", opener=_private) as stream:
            self._popen = subprocess.Popen(
                [*_WAIT_FOR_WORD, *command],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        self.leader = Leader(self._popen.pid, psutil.Process(self._popen.pid).create_time())

    def go(self) -> None:
        """Say the word: the process becomes the service."""
        pipe: Any = self._popen.stdin
        pipe.write(b"go\n")
        pipe.close()
        _CHILDREN.append(self._popen)


# Kept so that a child of this very process is reaped by `poll` instead of staying a zombie.
_CHILDREN: list[subprocess.Popen[bytes]] = []


def end(leaders: Iterable[Leader], patience_s: float = 10.0) -> int:
    """End whole families: ask every leader, give them time, then kill what is left.

    Returns:
        How many processes had to be killed.
    """
    leaders = list(leaders)
    members = {process for leader in leaders for process in leader.family()}
    for leader in leaders:
        if process := leader.process():
            _signal(process.terminate)
    _wait(members, patience_s, [leader for leader in leaders if leader.process()])
    killed = 0
    for _ in range(5):  # What is being killed may still start something; look again until nothing is found.
        members = {process for leader in leaders for process in leader.family()} | set(
            filter(_lives, members)
        )
        if not members:
            break
        for process in members:
            _signal(process.kill)
        killed += len(members)
        _wait(members, 3.0, [])
    return killed


def reap() -> None:
    """Let go of dead children of this process."""
    _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None]


def _wait(members: Iterable[psutil.Process], seconds: float, leaders: Sequence[Leader]) -> None:
    """Wait until all have gone; where leaders are given, at most a moment longer than for these."""
    deadline = time.monotonic() + seconds
    grace = None
    while time.monotonic() < deadline and any(_lives(process) for process in members):
        reap()
        if leaders and grace is None and not any(leader.process() for leader in leaders):
            grace = time.monotonic() + 1.0  # Orphans that have not followed by now will not.
        if grace and time.monotonic() > grace:
            return
        time.sleep(POLL_S)


def _lives(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not, though where nothing reaps it it has a pid for ever."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _taken_by_another(leader: Leader) -> bool:
    try:
        return abs(psutil.Process(leader.pid).create_time() - leader.created) >= 1.0
    except psutil.Error:
        return False


def _signal(send: Any) -> None:
    with contextlib.suppress(psutil.Error):
        send()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
