"""The stack: object storage, MLflow and Ray on this machine, on loopback, for one user.

`up` starts the services that do not run, `down` stops all of them, `status` checks them. Their state lies in
`<home>/stack`; `down` keeps data, database and credentials. Only processes that are recorded there, with the
recorded start time, are ever stopped.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.local import processes, services, state
from mimic3d_platform.local.database import choose_database, remember_database
from mimic3d_platform.local.login import choose_login, client_variables
from mimic3d_platform.settings import Settings, default_home
from mimic3d_platform.storage.s3 import DEFAULT_REGION

# Services start within seconds on an idle machine and within minutes on a busy one.
START_PATIENCE_S = 400.0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ServiceStatus:
    """The state of one service."""

    name: str
    title: str
    """The name in messages."""
    url: str | None
    port: int | None
    pid: int | None
    """Of its first process; None, as `url` and `port`, if it does not run."""
    healthy: bool
    """Whether it runs and answers."""
    detail: str
    """One line for the user: what is wrong, or `running`."""
    log: Path


@dataclass(frozen=True)
class StackStatus:
    """The state of all services."""

    home: Path
    services: dict[str, ServiceStatus] = field(default_factory=dict)
    """By name: `s3`, `mlflow`, `ray`, and `ray-2` and so on for further nodes."""

    @property
    def healthy(self) -> bool:
        """Whether every service runs and answers."""
        return all(service.healthy for service in self.services.values())

    @property
    def running(self) -> bool:
        """Whether any service runs."""
        return any(service.pid for service in self.services.values())


def up(
    home: Path | None = None,
    nodes: int | None = None,
    cpus: int | None = None,
    on_progress: Progress = lambda line: None,
    database: str | None = None,
    login: bool | None = None,
) -> StackStatus:
    """Starts the services that do not run, waits until all answer, and creates the buckets.

    Args:
        home: the folder of the state; `$MIMIC3D_HOME` or its default if None.
        nodes: the number of Ray nodes, several to try the loss of one; further running nodes are stopped.
            None for as many as last time.
        cpus: CPUs that each node started now offers; all of the machine's if None.
        on_progress: called with each line of progress.
        database: a PostgreSQL URL for MLflow, `postgresql://USER@HOST/DATABASE` without a password, or
            `sqlite`; if None, last time's, at first SQLite.
        login: whether MLflow asks for a login; if None, as last time, at first not.
    Returns:
        The services, all of which answer.
    Raises:
        UserError: a service is missing, dies or does not answer; names it, its log and the remedy.
    """
    for name, value in (("nodes", nodes), ("cpus", cpus)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; give at least 1")
    home = _home(home)
    with state.locked(home) as stack:
        secrets = state.credentials(stack)
        database_url, other_database = choose_database(stack, database)
        with_login, other_login = choose_login(stack, login)
        further = _further_nodes(stack)
        wanted = range(2, nodes + 1) if nodes is not None else further
        superfluous = [f"ray-{index}" for index in further if index not in wanted]
        _stop(stack, superfluous + (["mlflow"] if other_database or other_login else []))
        kinds: list[services.ServiceKind] = [
            services.ObjectStorage(),
            services.Tracking(database_url, with_login),
            services.RayHead(cpus),
            *(services.RayNode(index, cpus) for index in wanted),
        ]
        state.make_runtime(stack)
        # All are prepared before the first is started, so that a missing program is reported at once.
        prepared = [(kind, _prepare(stack, kind, secrets)) for kind in _to_start(stack, kinds)]
        for kind, launch in prepared:
            _start(stack, kind, launch)
            on_progress(f"{kind.title}: starting")
        state.write_environment(stack, _environment(stack, secrets, with_login))
        if other_database:  # Before the wait: MLflow runs on it even if another service then fails.
            remember_database(stack, database_url)
        _wait(stack, kinds, secrets, on_progress)
        _make_buckets(stack, secrets)
    return status(home)


def down(home: Path | None = None, on_progress: Progress = lambda line: None) -> StackStatus:
    """Stops all processes of the stack; keeps data, database, credentials and ports.

    Args:
        home: as for `up`.
        on_progress: called with each line of progress.
    Returns:
        The services, none of which runs.
    """
    home = _home(home)
    if not (home / "stack").is_dir():
        return status(home)
    with state.locked(home) as stack:
        running = {name: known.leader for name, known in stack.services.items() if known.leader}
        if any(leader.members() for leader in running.values()):
            on_progress("stopping " + ", ".join(kind.title for kind in _kinds(stack) if kind.name in running))
        # The storage stops last because the others write to it.
        processes.stop([leader for name, leader in running.items() if name != "s3"])
        # On SIGTERM, SeaweedFS stops accepting requests at once and then sleeps for 15 s. What it has
        # acknowledged is in its files by then, so killing it earlier loses nothing.
        processes.stop([running["s3"]] if "s3" in running else [], patience_s=3.0)
        _mark_stopped(stack, list(running))
        state.delete_runtime(stack)
        stack.save()
    return status(home)


def status(home: Path | None = None) -> StackStatus:
    """Checks whether each service's process runs and answers; takes seconds at most.

    Args:
        home: as for `up`.
    """
    home = _home(home)
    stack = state.Stack.load(home)
    return StackStatus(home, {kind.name: _status_of(stack, kind) for kind in _kinds(stack)})


def _home(home: Path | None) -> Path:
    return (home or default_home()).expanduser().absolute()


def _kinds(stack: state.Stack) -> list[services.ServiceKind]:
    """Returns the three services of every stack, and the further Ray nodes of this one."""
    nodes = [services.RayNode(index) for index in _further_nodes(stack)]
    return [services.ObjectStorage(), services.Tracking(), services.RayHead(), *nodes]


def _further_nodes(stack: state.Stack) -> list[int]:
    """Returns the numbers of the Ray nodes beside the head that were started and not stopped since."""
    names = [name for name, known in stack.services.items() if name.startswith("ray-") and known.leader]
    return sorted(int(name.removeprefix("ray-")) for name in names)


def _stop(stack: state.Stack, names: list[str]) -> None:
    """Stops services that are no longer wanted, or that need other options."""
    leaders = [stack.service(name).leader for name in names]
    processes.stop([leader for leader in leaders if leader])
    _mark_stopped(stack, names)
    stack.save()


def _status_of(stack: state.Stack, kind: services.ServiceKind) -> ServiceStatus:
    known = stack.services.get(kind.name, state.Service())
    alive = known.leader is not None and known.leader.process() is not None
    healthy = alive and kind.answers(known.ports)
    if healthy:
        detail = "running"
    elif alive:
        detail = "running but does not answer" if known.ready else "starting"
    elif known.leader is not None:
        detail = "died; `mimic3d up` starts it again"
    else:
        detail = "not running; `mimic3d up` starts it"
    return ServiceStatus(
        name=kind.name,
        title=kind.title,
        url=kind.url(known.ports) if alive else None,
        port=known.ports.get(kind.ports[0]) if alive else None,
        pid=known.leader.pid if alive and known.leader else None,
        healthy=healthy,
        detail=detail,
        log=stack.log(kind.name),
    )


def _to_start(stack: state.Stack, kinds: list[services.ServiceKind]) -> list[services.ServiceKind]:
    """Returns the services that do not run; stops their orphans and gives them ports."""
    dead: list[services.ServiceKind] = []
    taken = {port for known in stack.services.values() for port in known.ports.values()}
    outdated: set[str] = set()
    for kind in kinds:
        known = stack.service(kind.name)
        if known.leader and known.leader.process() and kind.name not in outdated:
            continue
        if known.leader:
            processes.stop([known.leader])
            _mark_stopped(stack, [kind.name])
        ports = state.free_ports(kind.ports, known.ports, taken)
        if kind.name == "s3" and ports != known.ports:
            outdated.add("mlflow")  # It has the storage's former address.
        if kind.name == "ray":
            outdated.update(name for name in stack.services if name.startswith("ray-"))
        known.ports = ports
        dead.append(kind)
    stack.save()
    return dead


def _prepare(stack: state.Stack, kind: services.ServiceKind, secrets: dict[str, str]) -> services.Launch:
    """Writes a service's configuration; returns how to start it."""
    try:
        return kind.launch(stack, stack.service(kind.name).ports, secrets)
    except OSError as error:
        raise UserError(f"cannot prepare {kind.title}: {error.strerror} ({error.filename})") from None


def _start(stack: state.Stack, kind: services.ServiceKind, launch: services.Launch) -> None:
    """Starts one service; its process is recorded before the service runs."""
    known = stack.service(kind.name)
    log = stack.log(kind.name)
    try:
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        process = processes.WaitingProcess(launch.command, launch.environment(), launch.folder, log)
    except OSError as error:
        raise UserError(f"cannot start {kind.title}: {error.strerror} ({error.filename})") from None
    known.leader, known.ready = process.leader, False
    stack.save()
    process.release()


def _wait(
    stack: state.Stack, kinds: list[services.ServiceKind], secrets: dict[str, str], on_progress: Progress
) -> None:
    """Waits until every service answers.

    A Ray node that dies is started once more: Ray gives its own processes 30 s to start, too few on a busy
    machine.
    """
    began = time.monotonic()
    waiting = list(kinds)
    restartable = {kind.name for kind in kinds if kind.name.startswith("ray")}
    while waiting:
        for kind in list(waiting):
            known = stack.service(kind.name)
            assert known.leader is not None
            if kind.answers(known.ports) and known.leader.process():
                if not known.ready:
                    on_progress(f"{kind.title}: ready after {time.monotonic() - began:.0f} s")
                known.ready = True
                stack.save()
                waiting.remove(kind)
            elif known.leader.process() is None and kind.name in restartable:
                restartable.remove(kind.name)
                # Nodes that have joined a head die with it.
                lost = [other for other in kinds if kind.name == "ray" and other.name.startswith("ray-")]
                for other in [kind, *lost]:
                    if leader := stack.service(other.name).leader:
                        processes.stop([leader], patience_s=3.0)
                    _start(stack, other, _prepare(stack, other, secrets))
                    waiting += [other] if other not in waiting else []
                    on_progress(f"{other.title}: starting again")
            elif known.leader.process() is None:
                raise _failure(stack, kind, "stopped while starting", stop_it=True)
            elif time.monotonic() - began > START_PATIENCE_S:
                started = not known.ready
                problem = "did not become ready" if started else "runs but does not answer"
                problem += f" within {START_PATIENCE_S:.0f} s"
                raise _failure(stack, kind, problem, stop_it=started)
        processes.reap()
        time.sleep(processes.POLL_S)


def _failure(stack: state.Stack, kind: services.ServiceKind, problem: str, stop_it: bool) -> UserError:
    """Returns the error for a service that does not start; stops the service first if `stop_it` is set."""
    known = stack.service(kind.name)
    assert known.leader is not None
    log = stack.log(kind.name)
    reason = state.last_error(log)
    remedy = "run `mimic3d up` again" if stop_it else "run `mimic3d down`, then `mimic3d up`"
    if stop_it:
        processes.stop([known.leader], patience_s=3.0)
        _mark_stopped(stack, [kind.name])
        stack.save()
    return UserError(
        f"{kind.title} {problem}{f' ({reason})' if reason else ''}; its log is {log}; correct that, then "
        f"{remedy}"
    )


def _mark_stopped(stack: state.Stack, names: list[str]) -> None:
    """Removes stopped processes from the record, and deletes the sockets that they left."""
    for name in names:
        known = stack.service(name)
        known.leader, known.ready = None, False
        if name == "s3" and known.ports:
            for socket in services.ObjectStorage().leftovers(known.ports):
                with contextlib.suppress(OSError):
                    socket.unlink(missing_ok=True)


def _environment(stack: state.Stack, secrets: dict[str, str], login: bool) -> dict[str, str]:
    """Returns the variables that `settings` reads from the stack's file."""
    return {
        "AWS_ENDPOINT_URL": services.ObjectStorage().url(stack.service("s3").ports),
        "AWS_ACCESS_KEY_ID": secrets["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": secrets["AWS_SECRET_ACCESS_KEY"],
        "AWS_REGION": DEFAULT_REGION,
        "MLFLOW_TRACKING_URI": services.Tracking().url(stack.service("mlflow").ports),
        **client_variables(login, secrets),
        "RAY_ADDRESS": services.RayHead().address(stack.service("ray").ports),
        "RAY_API_SERVER_ADDRESS": services.RayHead().url(stack.service("ray").ports),
        **services.ray_variables(stack),
    }


def _make_buckets(stack: state.Stack, secrets: dict[str, str]) -> None:
    """Creates the two buckets and tries a write, which the storage refuses for a moment after its start."""
    import botocore.exceptions

    variables: dict[str, Any] = {**_environment(stack, secrets, False), "AWS_SESSION_TOKEN": None}
    settings = Settings(**variables)
    client = storage.s3_client(settings)
    deadline = time.monotonic() + START_PATIENCE_S / 4
    while True:
        try:
            existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for bucket in (services.DATA_BUCKET, services.ARTIFACT_BUCKET):
                if bucket not in existing:
                    client.create_bucket(Bucket=bucket)
                client.put_object(Bucket=bucket, Key=".mimic3d-up", Body=b"up")
                client.delete_object(Bucket=bucket, Key=".mimic3d-up")
            return
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            if time.monotonic() > deadline:
                log = stack.log("s3")
                raise UserError(
                    f"SeaweedFS (S3) refuses writes ({error}); is its disk full? Its log is {log}; "
                    "correct that, then run `mimic3d down` and `mimic3d up`"
                ) from None
        time.sleep(0.2)
