"""Work sent to a running Ray cluster through its Jobs API, followed, left and found again.

What travels is one small folder: the resolved config, and the sources only where they are asked for. No
credential travels: the job finds them in the cluster's own environment (docs/clusters.md). A submission's id
follows from what the work is, so that the same work submitted twice is one job.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mimic3d_platform.cluster.dashboard import Cluster, NoAnswer
from mimic3d_platform.cluster.ray_internals import UPLOAD_LOGGERS
from mimic3d_platform.errors import UserError

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_S = 1.0
# A head that is being restarted is waited for; the job itself does not need us.
OUTAGE_PATIENCE_S = 120.0
STOP_PATIENCE_S = 90.0
# Ray kills a stopped driver after this long; by then it has told MLflow and let its workers go.
_DRIVER_PATIENCE_S = 60
_SOURCES = ("mimic3d", "platform/mimic3d_platform", "jobs")
_RUN_KEY, _KIND_KEY = "mimic3d.run", "mimic3d.kind"


@dataclass(frozen=True)
class Work:
    """What a cluster is to do: `python -m jobs.<kind> <arguments>` in a folder that holds `files`."""

    kind: str
    """`train`, `sweep`, `evaluate` or `data`: the name of the entry point in `jobs/`."""
    name: str
    """The run's name, by which people find it again."""
    arguments: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    """By name, the small text files that the arguments name."""
    identity: str = ""
    """What makes two submissions the same work; arguments and files where it is empty."""

    @property
    def id(self) -> str:
        """The id of its first submission."""
        content = self.identity or repr((self.arguments, sorted(self.files.items())))
        readable = re.sub(r"[^A-Za-z0-9._-]", "-", self.name)[:60]
        digest = hashlib.sha256(f"{self.kind} {self.name} {content}".encode()).hexdigest()[:8]
        return f"{self.kind}-{readable}-{digest}"

    @property
    def command(self) -> str:
        """The shell command that the cluster runs."""
        return shlex.join(["python", "-m", f"jobs.{self.kind}", *self.arguments])


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    status: str
    kind: str
    run: str
    started: float | None
    """Seconds since the epoch."""
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in ENDED


def submit(cluster: Cluster, work: Work, *, with_code: bool = False) -> tuple[Job, bool]:
    """Sends `work`, unless it runs there already.

    Work that has ended is sent again under the next attempt's id, `…-2`: a run goes on from its last
    checkpoint, a finished one says so.

    Args:
        with_code: send the tracked sources of this checkout too, and use them instead of the image's.
    Returns:
        The job, and whether it is new.
    """
    attempts = {_attempt(work.id, job.id): job for job in jobs(cluster)}
    attempts.pop(0, None)
    if attempts:
        newest = attempts[max(attempts)]
        if not newest.over:
            return newest, False
    number = max(attempts, default=0) + 1
    job_id = work.id if number == 1 else f"{work.id}-{number}"
    with tempfile.TemporaryDirectory(prefix="mimic3d-job-") as name:
        folder = Path(name)
        for file, text in work.files.items():
            (folder / file).write_text(text, encoding="utf-8")
        commit = _copy_sources(folder) if with_code else None
        _send(cluster, work, job_id, folder, commit)
    job = find(cluster, job_id)
    return job, True


def jobs(cluster: Cluster) -> list[Job]:
    """All submitted jobs of the cluster, the newest first."""
    found = [_job(known) for known in cluster.ask("GET", "/api/jobs/") or () if known.get("submission_id")]
    return sorted(found, key=lambda job: job.started or 0.0, reverse=True)


def find(cluster: Cluster, name: str) -> Job:
    """The job of this id, or the newest of the run of this name.

    Raises:
        UserError: there is none.
    """
    known = cluster.ask("GET", f"/api/jobs/{quote(name, safe='')}")
    if known is not None:
        return _job(known)
    there = jobs(cluster)
    for job in there:
        if job.run == name:
            return job
    listed = ", ".join(job.id for job in there[:3]) or "none"
    raise UserError(f"no job or run {name} at {cluster.url}: it has {listed}; `mimic3d jobs list` shows all")


def logs(cluster: Cluster, job_id: str) -> str:
    """All that the job has printed so far."""
    answer = cluster.ask("GET", f"/api/jobs/{quote(job_id, safe='')}/logs")
    return str((answer or {}).get("logs") or "")


def follow(cluster: Cluster, job_id: str, show: Callable[[str], None]) -> Job:
    """Hands on what the job prints until it ends; a cluster that is away for a while is waited for.

    Raises:
        UserError: it stays away, or the job is unknown there (a new cluster under the same address).
    """
    shown = 0
    away_since: float | None = None
    while True:
        try:
            job = find(cluster, job_id)
            text = logs(cluster, job_id)
            away_since = None
        except NoAnswer:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > OUTAGE_PATIENCE_S:
                raise
            time.sleep(POLL_S)
            continue
        end = len(text) if job.over else text.rfind("\n") + 1
        if end > shown:
            show(text[shown:end])
            shown = end
        if job.over:
            return job
        # The whole log is one answer, so a long one is asked for less often.
        time.sleep(POLL_S + len(text) / 500_000)


def stop(cluster: Cluster, job_id: str) -> Job:
    """Asks the job to stop and waits until it has."""
    cluster.ask("POST", f"/api/jobs/{quote(job_id, safe='')}/stop")
    deadline = time.monotonic() + STOP_PATIENCE_S
    while not (job := find(cluster, job_id)).over and time.monotonic() < deadline:
        time.sleep(0.5)
    return job


def _attempt(first: str, job_id: str) -> int:
    """The number of the attempt that `job_id` is of the work with the id `first`; 0 if it is of another."""
    match = re.fullmatch(re.escape(first) + r"(?:-(\d+))?", job_id)
    return int(match[1] or 1) if match else 0


def _job(known: Mapping[str, Any]) -> Job:
    labels = known.get("metadata") or {}
    started, ended = known.get("start_time"), known.get("end_time")
    return Job(
        id=known["submission_id"],
        status=known["status"],
        kind=labels.get(_KIND_KEY, ""),
        run=labels.get(_RUN_KEY, ""),
        started=started / 1000 if started else None,
        ended=ended / 1000 if ended else None,
        exit_code=known.get("driver_exit_code"),
        message=" ".join((known.get("message") or "").split()),
    )


def _send(cluster: Cluster, work: Work, job_id: str, folder: Path, commit: str | None) -> None:
    from ray.job_submission import JobSubmissionClient

    for chatty in UPLOAD_LOGGERS:
        logging.getLogger(chatty).setLevel(logging.ERROR)
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_DRIVER_PATIENCE_S), "PYTHONUNBUFFERED": "1"}
    if commit:
        variables["MIMIC3D_COMMIT"] = commit
    try:
        JobSubmissionClient(cluster.url, headers=cluster.headers).submit_job(
            entrypoint=work.command,
            submission_id=job_id,
            runtime_env={"working_dir": str(folder), "env_vars": variables},
            metadata={_KIND_KEY: work.kind, _RUN_KEY: work.name},
        )
    except (RuntimeError, ConnectionError, ValueError) as error:
        said = " ".join(str(error).split())
        if "already exists" in said:  # Someone has submitted the same work in this very moment.
            return
        raise UserError(f"Ray at {cluster.url} does not take the job: {said[:300]}") from None


def _copy_sources(folder: Path) -> str:
    """Copies the tracked sources of this checkout, as they are now; returns the commit they are based on.

    Raises:
        UserError: this program does not run from a checkout.
    """
    root = Path(__file__).parents[3]
    try:
        listed = _git(root, "ls-files", "-z", *_SOURCES).split("\0")
        commit = _git(root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").strip()
    except (OSError, subprocess.SubprocessError):
        raise UserError(
            f"--with-code sends the sources of a git checkout, and {root} is none: leave it out, and the "
            "cluster uses the mimic3d of its image"
        ) from None
    for name in filter(None, listed):
        source, target = root / name, folder / name.removeprefix("platform/")
        if source.is_file():  # A tracked file may have been deleted.
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


@contextlib.contextmanager
def detachable(cluster: Cluster, job: Job, say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C in the block leaves the job to itself and says how to find it again.

    Raises:
        SystemExit: with status 130, after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(
            f"detached: the job {job.id} goes on; `mimic3d jobs logs {job.id} --follow` shows it again, "
            f"`mimic3d jobs stop {job.id}` ends it"
        )
        raise SystemExit(130) from None
