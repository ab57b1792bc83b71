"""The local stack: starting, privacy, repair after kills, and stopping.

These tests break stacks, so they start one beside the session's.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mimic3d_platform import local, storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.local import processes, services
from mimic3d_platform.local.state import Service, Stack, free_ports, locked
from mimic3d_platform.settings import get_settings, stack_file
from stack_processes import alive, stack_processes

ROOT = Path(__file__).parents[3]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "platform")])

UP = """
import json
from mimic3d_platform import local
status = local.up(cpus=2)
print(json.dumps({name: service.pid for name, service in status.services.items()}))
"""

LOG_A_RUN = """
import sys, mlflow
with mlflow.start_run() as run:
    mlflow.log_text("kept", "note.txt")
print(run.info.run_id, run.info.artifact_uri)
"""

READ_A_RUN = """
import sys, mlflow
print(mlflow.artifacts.load_text(f"runs:/{sys.argv[1]}/note.txt"))
"""

RAY_TASK = """
import ray
ray.init(log_to_driver=False)

@ray.remote
def look():
    import os
    from mimic3d_platform import storage
    return storage.exists("s3://mimic3d/kept.bin"), "AWS_SECRET_ACCESS_KEY" in os.environ

print(ray.get(look.remote()))
"""


def python(program: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """Runs Python code in a process with the environment that the command has for the stack under `home`."""
    names = ("AWS_", "MLFLOW_", "RAY_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    environment |= {"PYTHONPATH": PATHS, "MIMIC3D_HOME": str(home)}
    begin = "from mimic3d_platform.settings import use_services; use_services()\n" if program != UP else ""
    return subprocess.Popen(
        [sys.executable, "-c", begin + program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    return out.strip().splitlines()[-1]  # MLflow prints lines of its own before it.


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path for a stack that is expected to fail; it is stopped in any case."""
    with tempfile.TemporaryDirectory(prefix="m3d-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)
        local.down(Path(name))


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """The folder of a stack that two processes started at once."""
    with tempfile.TemporaryDirectory(prefix="m3d-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        both = [python(UP, folder) for _ in range(2)]
        try:
            first, second = (json.loads(output_of(process)) for process in both)
            assert first == second and all(first.values())
            yield folder
        finally:
            for process in both:
                process.kill()
                process.communicate()
            local.down(folder)
        assert not stack_processes(folder)


@pytest.fixture(autouse=True)
def settings_of_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points this process at the services under `home`, if the test uses it, not at the session's."""
    if "home" in request.fixturenames:
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "RAY_A"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("MIMIC3D_HOME", str(request.getfixturevalue("home")))


# A working stack.


def test_concurrent_starts_give_one_stack_and_another_changes_nothing(home: Path) -> None:
    before = local.status(home)
    said: list[str] = []
    after = local.up(home, on_progress=said.append)
    assert before == after and after.healthy and not said
    buckets = storage.s3_client().list_buckets()["Buckets"]
    assert {bucket["Name"] for bucket in buckets} == {"mimic3d", "mimic3d-artifacts"}


def test_private_files_are_readable_by_their_owner_only(home: Path) -> None:
    assert (home / "stack").stat().st_mode & 0o777 == 0o700
    for name in ("environment.json", "credentials.json", "s3/identities.json", "ray/token"):
        assert (home / "stack" / name).stat().st_mode & 0o777 == 0o600, name


def test_no_secret_is_in_arguments_or_logs(home: Path) -> None:
    secrets = set(json.loads((home / "stack" / "credentials.json").read_text(encoding="utf-8")).values())
    texts = [" ".join(process.cmdline()) for process in alive(stack_processes(home))]
    texts += [
        log.read_text(encoding="utf-8", errors="replace") for log in (home / "stack" / "logs").iterdir()
    ]
    assert not [secret for secret in secrets if any(secret in text for text in texts)]


def test_services_listen_on_loopback_only_while_ray_works(home: Path) -> None:
    storage.write_bytes("s3://mimic3d/kept.bin", b"kept")
    # The worker reads the credentials from the stack's private file; its environment holds none.
    assert output_of(python(RAY_TASK, home)) == "(True, False)"
    open_to = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in alive(stack_processes(home))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    }
    assert open_to <= {"127.0.0.1", "::1"}


def test_ray_requires_the_token(home: Path) -> None:
    dashboard = local.status(home).services["ray"].port
    assert dashboard and services._get_status(dashboard, "/api/version") == 401


@pytest.mark.slow
def test_only_killed_services_are_started_again(home: Path) -> None:
    storage.write_bytes("s3://mimic3d/kept.bin", b"kept through a kill")
    run, artifacts = output_of(python(LOG_A_RUN, home)).split()
    assert artifacts.startswith("mlflow-artifacts:/")  # It contains no port.
    before = local.status(home).services
    for name in ("s3", "mlflow"):
        os.kill(before[name].pid, signal.SIGKILL)
    time.sleep(0.5)
    broken = local.status(home)
    assert not broken.healthy and broken.running
    assert "died" in broken.services["s3"].detail and "died" in broken.services["mlflow"].detail
    assert broken.services["ray"].healthy
    mended = local.up(home)
    assert mended.healthy and mended.services["ray"].pid == before["ray"].pid
    assert mended.services["s3"].url == before["s3"].url
    assert storage.read_bytes("s3://mimic3d/kept.bin") == b"kept through a kill"
    assert output_of(python(READ_A_RUN, home, run)) == "kept"


@pytest.mark.slow
def test_a_killed_ray_leaves_no_orphans_and_a_taken_port_is_replaced(home: Path) -> None:
    run = output_of(python(LOG_A_RUN, home)).split()[0]
    storage.write_bytes("s3://mimic3d/kept.bin", b"kept through a move")
    before = local.status(home).services
    orphans = [p for p in psutil.Process(before["ray"].pid).children(recursive=True)]
    for name in ("ray", "s3"):
        os.kill(before[name].pid, signal.SIGKILL)
    time.sleep(0.5)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", before["s3"].port))
        thief.listen()
        after = local.up(home)
    assert after.healthy and not alive(orphans)
    assert after.services["s3"].port != before["s3"].port
    assert after.services["mlflow"].pid != before["mlflow"].pid
    assert get_settings().s3_endpoint == after.services["s3"].url
    assert storage.read_bytes("s3://mimic3d/kept.bin") == b"kept through a move"
    assert output_of(python(READ_A_RUN, home, run)) == "kept"


@pytest.mark.slow
def test_down_leaves_no_process_and_up_keeps_the_data(home: Path) -> None:
    run = output_of(python(LOG_A_RUN, home)).split()[0]
    storage.write_bytes("s3://mimic3d/kept.bin", os.urandom(10 * 2**20))
    kept = storage.read_bytes("s3://mimic3d/kept.bin")
    before, secret = local.status(home).services, stack_file(home).read_text(encoding="utf-8")
    were = stack_processes(home)
    gone = local.down(home)
    assert not gone.running and not alive(were) and not stack_processes(home)
    assert not local.down(home).running  # A second stop is no error.
    again = local.up(home, nodes=2, cpus=1)
    assert again.healthy and "ray-2" in again.services
    assert (
        again.services["mlflow"].url == before["mlflow"].url
        and stack_file(home).read_text(encoding="utf-8") == secret
    )
    assert storage.read_bytes("s3://mimic3d/kept.bin") == kept
    assert output_of(python(READ_A_RUN, home, run)) == "kept"


# Stacks that cannot start.


def error_of(action, *arguments, **named) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_a_service_that_fails_to_start_is_named_with_its_log(folder: Path) -> None:
    (folder / "stack" / "mlflow").mkdir(parents=True)
    (folder / "stack" / "mlflow" / "mlflow.db").write_bytes(b"this is no database" * 100)
    said = error_of(local.up, folder)
    assert said.startswith("MLflow stopped while starting") and str(folder / "stack/logs/mlflow.log") in said
    assert "mimic3d up" in said
    assert local.status(folder).services["mlflow"].pid is None
    left = stack_processes(folder)
    local.down(folder)
    assert not alive(left) and not stack_processes(folder)


def test_a_missing_program_is_reported_before_anything_starts(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(services.importlib.metadata, "files", lambda name: [])
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "`weed` is missing" in error_of(local.up, folder)
    assert not stack_processes(folder)


def test_an_unusable_state_folder_is_one_line() -> None:
    assert "MIMIC3D_HOME" in error_of(local.up, Path("/dev/null/home"))


@pytest.mark.parametrize("number", [{"nodes": 0}, {"cpus": 0}])
def test_zero_nodes_or_cpus_is_one_line(number: dict[str, int], tmp_path: Path) -> None:
    assert "at least 1" in error_of(local.up, tmp_path, **number)


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack" / "state.json").write_text('{"services": 3', encoding="utf-8")
    assert "state.json is damaged" in error_of(local.status, tmp_path)


def test_a_held_lock_is_one_line(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another `mimic3d up`"), locked(tmp_path, 0.5):
        pass


def test_a_stack_that_was_never_started_is_not_running(tmp_path: Path) -> None:
    status = local.status(tmp_path / "nowhere")
    assert not status.running and not status.healthy and set(status.services) == {"s3", "mlflow", "ray"}
    assert not local.down(tmp_path / "nowhere").running and not (tmp_path / "nowhere").exists()


# Processes.


def test_a_process_that_reuses_a_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        own = processes.Leader.of(bystander.pid)
        assert own.process() and own.members()
        stack = Stack(tmp_path, {"s3": Service({}, replace(own, started=own.started - 100))})
        (tmp_path / "stack").mkdir()
        stack.save()
        assert not local.status(tmp_path).running
        local.down(tmp_path)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_clock_that_is_set_does_not_hide_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    service = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        leader = processes.Leader.of(service.pid)
        # The kernel's time of the start moves with the clock, and with it the processes' times of creation.
        before = psutil._pslinux.boot_time
        created = psutil.Process(service.pid).create_time()
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: before() + 3600)
        assert psutil.Process(service.pid).create_time() == pytest.approx(created + 3600, abs=0.1)
        assert leader.process() and [member.pid for member in leader.members()] == [service.pid]
        assert not replace(leader, boot="another start of the machine").members()
    finally:
        service.kill()
        service.wait()


def test_orphans_of_a_killed_leader_are_stopped(tmp_path: Path) -> None:
    starting = processes.WaitingProcess(
        ["sh", "-c", "sleep 60 & sleep 60 & wait"], os.environ, tmp_path, tmp_path / "l"
    )
    starting.release()
    while len(starting.leader.members()) < 3:
        time.sleep(0.05)
    os.kill(starting.leader.pid, signal.SIGKILL)
    orphans = starting.leader.members()
    while starting.leader.process():
        time.sleep(0.05)
    processes.stop([starting.leader], patience_s=1.0)
    assert len(orphans) >= 2 and not alive(orphans)


def test_a_service_whose_starter_is_killed_never_runs(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from mimic3d_platform.local.processes import WaitingProcess
folder = Path({str(tmp_path)!r})
print(WaitingProcess(["touch", "ran"], os.environ, folder, folder / "log").leader.pid, flush=True)
os._exit(0)
"""
    environment = os.environ | {"PYTHONPATH": PATHS}
    pid = int(subprocess.check_output([sys.executable, "-c", program], env=environment, text=True))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and psutil.pid_exists(pid) and alive([psutil.Process(pid)]):
        time.sleep(0.05)
    assert not (tmp_path / "ran").exists()
    assert not psutil.pid_exists(pid) or not alive([psutil.Process(pid)])


def test_ports_are_kept_while_free_and_distinct() -> None:
    taken: set[int] = set()
    first = free_ports(["a", "b"], {}, taken)
    assert free_ports(["a", "b"], first, set()) == first
    assert not set(first.values()) & set(free_ports(["a", "b"], {}, taken).values())
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", first["a"]))
        thief.listen()
        assert free_ports(["a", "b"], first, taken, patience_s=0.5) != first


def test_a_port_that_becomes_free_soon_is_waited_for() -> None:
    first = free_ports(["a"], {}, set())
    with socket.socket() as dying:
        dying.bind(("127.0.0.1", first["a"]))
        dying.listen()
        threading.Timer(0.5, dying.close).start()
        assert free_ports(["a"], first, set(), patience_s=100) == first
