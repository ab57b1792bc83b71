"""Ray jobs of a running cluster: submit, list, find, follow and stop them through Ray's Jobs API.

A submission carries one small folder: the resolved config, and the sources only on request. It carries no
credentials; the job reads those from the cluster's own environment (docs/clusters.md). A job's id is derived
from what it does, so that a job submitted twice runs once.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mimic3d_platform.cluster.connect import UnreachableError
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.digests import sha256
from mimic3d_platform.tracking.git_commit import commit_of, run_git

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from mimic3d_platform.cluster.dashboard import Dashboard

# `follow` waits this long for a head that is being restarted; the job itself needs no connection to us.
OUTAGE_PATIENCE_S = 120.0
STOP_PATIENCE_S = 90.0
RETRY_S = 1.0
# Ray kills a stopped driver after this long; it needs the time to end its MLflow run and its workers.
_DRIVER_PATIENCE_S = 60
_SOURCES = ("mimic3d", "platform/mimic3d_platform", "jobs")
_RUN_KEY, _KIND_KEY = "mimic3d.run", "mimic3d.kind"


@dataclass(frozen=True)
class JobSpec:
    """A job to submit: `python -m jobs.<kind> <arguments>`, run in a folder that holds `files`."""

    kind: str
    """`train`, `sweep`, `evaluate` or `data`: the entry point in `jobs/`."""
    run: str
    """The run's name, by which `mimic3d jobs` finds the job."""
    arguments: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    """Small text files that the arguments name: content by file name."""
    identity: str = ""
    """Two specs of one kind, run and identity are the same job; if empty, arguments and files decide."""

    @property
    def id(self) -> str:
        """The submission id of the first attempt."""
        identity = self.identity or repr((self.arguments, sorted(self.files.items())))
        readable = re.sub(r"[^A-Za-z0-9._-]", "-", self.run)[:60]
        digest = sha256(f"{self.kind} {self.run} {identity}".encode())[:8]
        return f"{self.kind}-{readable}-{digest}"

    @property
    def command(self) -> str:
        """The shell command that the cluster runs."""
        return shlex.join(["python", "-m", f"jobs.{self.kind}", *self.arguments])


@dataclass(frozen=True)
class Job:
    """A submitted job as the cluster reports it."""

    id: str
    status: str
    """Ray's: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    ended: bool
    kind: str
    run: str
    start_time: float | None
    """Seconds since the epoch, as `end_time`."""
    end_time: float | None
    exit_code: int | None
    message: str

    @classmethod
    def of(cls, details: JobDetails) -> Job:
        """Reads a job from what Ray's client returns."""
        metadata = details.metadata or {}
        return cls(
            id=details.submission_id or "",
            status=str(details.status.value),
            ended=details.status.is_terminal(),
            kind=metadata.get(_KIND_KEY, ""),
            run=metadata.get(_RUN_KEY, ""),
            start_time=details.start_time / 1000 if details.start_time else None,
            end_time=details.end_time / 1000 if details.end_time else None,
            exit_code=details.driver_exit_code,
            message=" ".join((details.message or "").split()),
        )


def submit(dashboard: Dashboard, spec: JobSpec, *, with_code: bool = False) -> tuple[Job, bool]:
    """Submits a job, unless the cluster is running it already.

    A job that has ended is submitted again as the next attempt, with the id `…-2` and so on; its run resumes
    from its last checkpoint.

    Args:
        with_code: also send the tracked sources of this checkout, which replace those of the cluster's image.
    Returns:
        The job, and whether it is new.
    Raises:
        UserError: the cluster refuses the job, or `with_code` is set and this is no checkout.
    """
    attempts = {_attempt(spec.id, job.id): job for job in list_jobs(dashboard)}
    attempts.pop(0, None)
    if attempts:
        newest = attempts[max(attempts)]
        if not newest.ended:
            return newest, False
    number = max(attempts, default=0) + 1
    job_id = spec.id if number == 1 else f"{spec.id}-{number}"
    with tempfile.TemporaryDirectory(prefix="mimic3d-job-") as name:
        folder = Path(name)
        for file, text in spec.files.items():
            (folder / file).write_text(text, encoding="utf-8")
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_DRIVER_PATIENCE_S), "PYTHONUNBUFFERED": "1"}
        if with_code:
            variables["MIMIC3D_COMMIT"] = _copy_sources(folder)
        try:
            dashboard.submit_job(
                entrypoint=spec.command,
                submission_id=job_id,
                runtime_env={"working_dir": str(folder), "env_vars": variables},
                metadata={_KIND_KEY: spec.kind, _RUN_KEY: spec.run},
            )
        except UserError:
            # Another process may have submitted the same job since the list was read.
            if all(job.id != job_id for job in list_jobs(dashboard)):
                raise
    return find_job(dashboard, job_id), True


def list_jobs(dashboard: Dashboard) -> list[Job]:
    """Returns all submitted jobs of the cluster, the newest first."""
    found = [Job.of(details) for details in dashboard.list_jobs() if details.submission_id]
    return sorted(found, key=lambda job: job.start_time or 0.0, reverse=True)


def find_job(dashboard: Dashboard, name: str) -> Job:
    """Returns the job with the id `name`, else the newest job of the run `name`.

    Raises:
        UserError: the cluster has neither.
    """
    jobs = list_jobs(dashboard)
    for job in jobs:
        if job.id == name:
            return job
    for job in jobs:
        if job.run == name:
            return job
    if not jobs:
        raise UserError(
            f"no job or run {name} at {dashboard.cluster.url}: no job was submitted there; `mimic3d submit` "
            "submits one"
        )
    first = ", ".join(job.id for job in jobs[:3])
    raise UserError(
        f"no job or run {name} at {dashboard.cluster.url}: it has {first}; `mimic3d jobs list` shows all"
    )


def follow_job(dashboard: Dashboard, job_id: str, show: Callable[[str], None]) -> Job:
    """Passes a job's output to `show` as it is written, until the job ends.

    A head that does not answer is waited for; the output then continues where it was interrupted.

    Returns:
        The job, which has ended.
    Raises:
        UserError: the head does not answer or stream the log for `OUTAGE_PATIENCE_S`, or it does not know the
            job (a new cluster at the same address).
    """
    shown = 0
    lost_since: float | None = None
    while True:
        try:
            for text in dashboard.stream_log(job_id, skip=shown):
                lost_since = None
                show(text)
                shown += len(text)
            job = Job.of(dashboard.get_job_info(job_id))
            if job.ended:
                return job
            problem = UnreachableError(f"Ray at {dashboard.cluster.url} has closed the log of {job_id} early")
        except UnreachableError as error:
            problem = error
        lost_since = lost_since or time.monotonic()
        if time.monotonic() - lost_since > OUTAGE_PATIENCE_S:
            raise problem
        time.sleep(RETRY_S)


def stop_job(dashboard: Dashboard, job_id: str) -> Job:
    """Stops a job and waits until it has ended, for at most `STOP_PATIENCE_S`; returns it as it then is."""
    dashboard.stop_job(job_id)
    deadline = time.monotonic() + STOP_PATIENCE_S
    while not (job := Job.of(dashboard.get_job_info(job_id))).ended and time.monotonic() < deadline:
        time.sleep(RETRY_S / 2)
    return job


def _attempt(first: str, job_id: str) -> int:
    """Returns the number of the attempt with the id `job_id` of the job with the id `first`, or 0."""
    match = re.fullmatch(re.escape(first) + r"(?:-(\d+))?", job_id)
    return int(match[1] or 1) if match else 0


def _copy_sources(folder: Path) -> str:
    """Copies the tracked sources of this checkout, uncommitted changes included, into `folder`.

    Returns:
        The commit that the sources are based on.
    Raises:
        UserError: this program does not run from a git checkout.
    """
    root = Path(__file__).resolve().parents[3]
    try:
        listed = run_git(root, "ls-files", "-z", *_SOURCES).split("\0")
        commit = commit_of(root)
    except (OSError, subprocess.SubprocessError):
        raise UserError(
            f"--with-code sends the sources of a git checkout, and {root} is not one: leave it out, and the "
            "cluster uses the mimic3d of its image"
        ) from None
    for name in filter(None, listed):
        source, target = root / name, folder / name.removeprefix("platform/")
        if source.is_file():  # A tracked file may have been deleted.
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return commit
