"""The installed `mimic3d` command in a process, as users run it."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("mimic3d"))


def mimic3d(
    *arguments: object, timeout: float = 300, cwd: Path | None = None, **environment: str | None
) -> subprocess.CompletedProcess:
    """Runs the command to its end, in `cwd`; None in `environment` removes a variable."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=_environment(environment),
    )


def start_mimic3d(*arguments: object, log: Path, **environment: str | None) -> subprocess.Popen:
    """Starts the command with both output streams in the file `log`."""
    with log.open("w") as out:
        return subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=_environment(environment),
        )


def error_of(run: subprocess.CompletedProcess) -> str:
    """The only line on standard error of a refused command; fails if there is any other."""
    assert run.returncode not in (0, 1), (run.returncode, run.stdout, run.stderr)
    lines = run.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    notices = [
        line for line in lines if line.startswith("skipped the mesh ") or "; trying again for " in line
    ]
    others = [line for line in lines if line not in (*errors, *notices)]
    assert len(errors) == 1 and not others, run.stderr
    assert "Traceback" not in run.stdout
    return errors[0].removeprefix("error: ")


def _environment(changes: dict[str, str | None]) -> dict[str, str]:
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}
