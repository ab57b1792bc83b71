"""The processes of a local stack."""

import os
from pathlib import Path

import psutil

from mimic3d_platform.local.state import Stack


def stack_processes(home: Path) -> list[psutil.Process]:
    """All processes of the stack under `home`: services, their children, processes that name its folders."""
    stack = Stack.load(home)
    found = [p for known in stack.services.values() if known.leader for p in known.leader.members()]
    folders = [str(home), *([str(stack.runtime)] if stack.runtime else [])]
    for process in psutil.process_iter():
        try:
            arguments = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if process not in found and any(folder in arguments for folder in folders):
            found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; zombies do not count."""
    living = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
        except psutil.Error:
            continue
    return living
