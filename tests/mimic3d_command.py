"""The `mimic3d` command in a process of its own, as users run it."""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

COMMAND = str(Path(sys.executable).with_name("mimic3d"))
# Forked from a process that has imported these, a command begins at once: most of a refused one is imports.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["mimic3d_platform.cli", "mlflow", "ray.train.torch", "ray.tune", "mimic3d_platform.training.driver"]
)


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


def forked_mimic3d(
    *arguments: object, timeout: float = 300, **environment: str | None
) -> subprocess.CompletedProcess:
    """Runs the command's `main` to its end in a process forked from one with all libraries imported."""
    with tempfile.TemporaryDirectory(prefix="m3d-run-") as folder:
        command = [COMMAND, *map(str, arguments)]
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _FORKS.Process(target=_run_main, args=(command, _environment(environment), *streams))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        out, err = (stream.read_text(encoding="utf-8") for stream in streams)
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _run_main(command: list[str], environment: dict[str, str], stdout: Path, stderr: Path) -> NoReturn:
    for stream, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    from mimic3d_platform.cli import main

    try:
        main()
    finally:
        # A forked process does not do this by itself.
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
    raise SystemExit


def start_mimic3d(*arguments: object, log: Path, **environment: str | None) -> subprocess.Popen:
    """Starts the command with both output streams in the file `log`."""
    with log.open("w", encoding="utf-8") as out:
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
