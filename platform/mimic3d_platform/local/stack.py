"""The embedded stack: object storage, MLflow and Ray on this machine, on loopback, for one user.

`up` starts what is not running, `down` ends all of it, `status` looks. State lies in `<home>/stack`: data,
database and credentials outlive `down`; only processes recorded there, and known again by their creation
time, are ever ended.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.local import processes, services, state
from mimic3d_platform.local.database import choose_database, remember_database
from mimic3d_platform.settings import Settings, default_home

START_PATIENCE_S = 400.0  # Seconds, on an idle machine; minutes on a busy one.
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ServiceStatus:
    """One service as it is now. `detail` is one line for people: what is wrong, or what to know."""

    name: str
    title: str
    url: str | None
    port: int | None
    pid: int | None
    healthy: bool
    detail: str
    log: Path


@dataclass(frozen=True)
class StackStatus:
    """The stack as it is now, by service name: `s3`, `mlflow`, `ray`."""

    home: Path
    services: dict[str, ServiceStatus] = field(default_factory=dict)

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
) -> StackStatus:
    """Bring the stack up: start what is not running, wait until all answers, make the buckets.

    Args:
        home: the folder of its state; `$MIMIC3D_HOME` or its default if not given.
        nodes: how many Ray nodes; more than one is for trying the loss of one. As many as there were, alive
            or dead, if not given; those beyond it are ended.
        cpus: how many CPUs each node hands out; all of the machine's if not given. A running node keeps its.
        on_progress: is told, line by line, what happens.
        database: PostgreSQL for MLflow, `postgresql://USER@HOST/DATABASE` without the password; the one of
            the last time, else SQLite, if not given.
    Raises:
        UserError: a service is missing, dies or does not answer; names it, its log and the way out.
    """
    for name, value in (("nodes", nodes), ("cpus", cpus)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; give at least 1")
    home = _home(home)
    with state.locked(home) as stack:
        secrets = state.credentials(stack)
        database_url, other_database = choose_database(stack, database)
        further = _further_nodes(stack)
        wanted = range(2, nodes + 1) if nodes is not None else further
        superfluous = [f"ray-{index}" for index in further if index not in wanted]
        _end(stack, superfluous + (["mlflow"] if other_database else []))
        kinds = [services.ObjectStorage(), services.Tracking(database_url), services.RayHead(cpus)]
        kinds += [services.RayNode(index, cpus) for index in wanted]
        state.make_runtime(stack)
        # All are laid out before any is started: what is missing is said while nothing runs yet.
        for kind, launch in [(kind, _launch(stack, kind, secrets)) for kind in _to_start(stack, kinds)]:
            _start(stack, kind, launch)
            on_progress(f"{kind.title}: starting")
        state.write_environment(stack, _environment(stack, secrets))
        _wait(stack, kinds, secrets, on_progress)
        if other_database:
            remember_database(stack, database_url)
        _make_buckets(stack, secrets)
    return status(home)


def down(home: Path | None = None, on_progress: Progress = lambda line: None) -> StackStatus:
    """End every process of the stack; its data, database, credentials and ports are kept."""
    home = _home(home)
    if not (home / "stack").is_dir():
        return status(home)
    with state.locked(home) as stack:
        running = {name: known.leader for name, known in stack.services.items() if known.leader}
        if any(leader.family() for leader in running.values()):
            on_progress("stopping " + ", ".join(kind.title for kind in _kinds(stack) if kind.name in running))
        # The storage last, since the others write to it.
        processes.end([leader for name, leader in running.items() if name != "s3"])
        # Asked to stop, SeaweedFS closes its doors at once but then waits 15 s for itself; what it has
        # acknowledged is in its files by then, so it need not be waited for.
        processes.end([running["s3"]] if "s3" in running else [], patience_s=3.0)
        _forget(stack, list(running))
        state.drop_runtime(stack)
        stack.save()
    return status(home)


def status(home: Path | None = None) -> StackStatus:
    """Look at every service: does its process live, does it answer; takes seconds at most."""
    home = _home(home)
    stack = state.Stack.load(home)
    return StackStatus(home, {kind.name: _look(stack, kind) for kind in _kinds(stack)})


def _home(home: Path | None) -> Path:
    return (home or default_home()).expanduser().absolute()


def _kinds(stack: state.Stack) -> list[services.ServiceKind]:
    """The three services every stack has, and those further Ray nodes that this one has running."""
    kinds = [services.ObjectStorage(), services.Tracking(), services.RayHead()]
    return [*kinds, *map(services.RayNode, _further_nodes(stack))]


def _further_nodes(stack: state.Stack) -> list[int]:
    """The numbers of the Ray nodes beside the head that run, or ran when they were last seen."""
    names = [name for name, known in stack.services.items() if name.startswith("ray-") and known.leader]
    return sorted(int(name.removeprefix("ray-")) for name in names)


def _end(stack: state.Stack, names: list[str]) -> None:
    """End services that are not to run, or not as they are."""
    known = {name: stack.service(name).leader for name in names}
    processes.end([leader for leader in known.values() if leader])
    _forget(stack, names)
    stack.save()


def _look(stack: state.Stack, kind: services.ServiceKind) -> ServiceStatus:
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
    """The services that do not run, cleared of what they left behind and with ports to listen on."""
    dead: list[services.ServiceKind] = []
    taken = {port for known in stack.services.values() for port in known.ports.values()}
    outdated: set[str] = set()
    for kind in kinds:
        known = stack.service(kind.name)
        if known.leader and known.leader.process() and kind.name not in outdated:
            continue
        if known.leader:
            processes.end([known.leader])
            _forget(stack, [kind.name])
        ports = state.free_ports(kind.ports, known.ports, taken)
        if kind.name == "s3" and ports != known.ports:
            outdated.add("mlflow")  # It was told where the storage is.
        if kind.name == "ray":
            outdated.update(name for name in stack.services if name.startswith("ray-"))
        known.ports = ports
        dead.append(kind)
    stack.save()
    return dead


def _launch(stack: state.Stack, kind: services.ServiceKind, secrets: dict[str, str]) -> services.Launch:
    try:
        return kind.launch(stack, stack.service(kind.name).ports, secrets)
    except OSError as error:
        raise UserError(f"cannot prepare {kind.title}: {error.strerror} ({error.filename})") from None


def _start(stack: state.Stack, kind: services.ServiceKind, launch: services.Launch) -> None:
    """Start one service; it is on record before it runs."""
    known = stack.service(kind.name)
    log = stack.log(kind.name)
    try:
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        starting = processes.Starting(launch.command, launch.environment(), launch.folder, log)
    except OSError as error:
        raise UserError(f"cannot start {kind.title}: {error.strerror} ({error.filename})") from None
    known.leader, known.ready = starting.leader, False
    stack.save()
    starting.go()


def _wait(
    stack: state.Stack, kinds: list[services.ServiceKind], secrets: dict[str, str], on_progress: Progress
) -> None:
    """Wait until every service answers.

    A part of Ray that dies is started once more: Ray gives its own parts 30 s, too few on a busy machine.
    """
    began = time.monotonic()
    waiting = list(kinds)
    again = {kind.name for kind in kinds if kind.name.startswith("ray")}
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
            elif known.leader.process() is None and kind.name in again:
                again.remove(kind.name)
                # Nodes that have joined a head are lost with it.
                lost = [other for other in kinds if kind.name == "ray" and other.name.startswith("ray-")]
                for other in [kind, *lost]:
                    if leader := stack.service(other.name).leader:
                        processes.end([leader], patience_s=3.0)
                    _start(stack, other, _launch(stack, other, secrets))
                    waiting += [other] if other not in waiting else []
                    on_progress(f"{other.title}: starting again")
            elif known.leader.process() is None:
                _give_up(stack, kind, "stopped while starting", end_it=True)
            elif time.monotonic() - began > START_PATIENCE_S:
                started = not known.ready
                manner = "did not become ready" if started else "runs but does not answer"
                _give_up(stack, kind, f"{manner} within {START_PATIENCE_S:.0f} s", end_it=started)
        processes.reap()
        time.sleep(processes.POLL_S)


def _give_up(stack: state.Stack, kind: services.ServiceKind, what: str, end_it: bool) -> None:
    known = stack.service(kind.name)
    assert known.leader is not None
    log = stack.log(kind.name)
    said = state.tail(log)
    way_out = "run `mimic3d up` again" if end_it else "run `mimic3d down`, then `mimic3d up`"
    if end_it:
        processes.end([known.leader], patience_s=3.0)
        _forget(stack, [kind.name])
        stack.save()
    raise UserError(
        f"{kind.title} {what}{f' ({said})' if said else ''}; its log is {log}; mend that, then {way_out}"
    )


def _forget(stack: state.Stack, names: list[str]) -> None:
    """Take processes that have ended off the record, with the sockets they leave."""
    for name in names:
        known = stack.service(name)
        known.leader, known.ready = None, False
        if name == "s3" and known.ports:
            for socket in services.ObjectStorage().leftovers(known.ports):
                with contextlib.suppress(OSError):
                    socket.unlink(missing_ok=True)


def _environment(stack: state.Stack, secrets: dict[str, str]) -> dict[str, str]:
    """The variables that `settings` reads from the stack's file."""
    return {
        "AWS_ENDPOINT_URL": services.ObjectStorage().url(stack.service("s3").ports),
        "AWS_ACCESS_KEY_ID": secrets["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": secrets["AWS_SECRET_ACCESS_KEY"],
        "AWS_REGION": "us-east-1",
        "MLFLOW_TRACKING_URI": services.Tracking().url(stack.service("mlflow").ports),
        "RAY_ADDRESS": services.RayHead().address(stack.service("ray").ports),
        "RAY_API_SERVER_ADDRESS": services.RayHead().url(stack.service("ray").ports),
        **services.ray_variables(stack),
    }


def _make_buckets(stack: state.Stack, secrets: dict[str, str]) -> None:
    """Make the two buckets, and try a write: the storage answers a little before it can take one."""
    import botocore.exceptions

    settings = Settings(**(_environment(stack, secrets) | {"AWS_SESSION_TOKEN": None}))
    client = storage.s3_client(settings)
    deadline = time.monotonic() + START_PATIENCE_S / 4
    while True:
        try:
            there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for bucket in (services.DATA_BUCKET, services.ARTIFACT_BUCKET):
                if bucket not in there:
                    client.create_bucket(Bucket=bucket)
                client.put_object(Bucket=bucket, Key=".mimic3d-up", Body=b"up")
                client.delete_object(Bucket=bucket, Key=".mimic3d-up")
            return
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            if time.monotonic() > deadline:
                log = stack.log("s3")
                raise UserError(
                    f"SeaweedFS (S3) takes no writes ({error}); is its disk full? Its log is {log}; "
                    "mend that, then run `mimic3d down` and `mimic3d up`"
                ) from None
        time.sleep(0.2)
