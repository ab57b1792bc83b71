"""The streamed log of a job on a real cluster, over a connection that breaks."""

import time
from collections.abc import Iterator

import pytest

from fault_proxy import FaultProxy
from mimic3d_platform import local
from mimic3d_platform.cluster import dashboard as dashboard_module
from mimic3d_platform.cluster import jobs
from mimic3d_platform.cluster.connect import UnreachableError, find_cluster
from mimic3d_platform.cluster.dashboard import Dashboard
from mimic3d_platform.cluster.jobs import Job, JobSpec
from mimic3d_platform.errors import UserError

pytestmark = pytest.mark.slow

LINES = 16
PROGRAM = f"""
import time
for line in range({LINES}):
    print("line", line, "ä" * line)
    time.sleep(0.5)
"""


@pytest.fixture(scope="module")
def proxy(stack: local.StackStatus) -> Iterator[FaultProxy]:
    with FaultProxy(stack.services["ray"].url or "") as proxy:
        yield proxy


@pytest.fixture
def dashboard(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Dashboard:
    """Ray's dashboard behind the proxy, with the stack's token."""
    found = find_cluster()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", proxy.url)
    assert found.token
    monkeypatch.setenv("RAY_AUTH_TOKEN", found.token)
    return Dashboard(find_cluster(proxy.url))


@pytest.fixture
def job(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that prints for eight seconds."""
    name = f"follow-{time.time_ns()}"
    monkeypatch.setattr(JobSpec, "command", f"python -c {PROGRAM!r}".replace("\\n", "\n"))
    job, new = jobs.submit(dashboard, JobSpec("data", name, ()))
    assert new and job.run == name
    return job


def test_the_log_is_complete_after_broken_connections(
    dashboard: Dashboard, proxy: FaultProxy, job: Job
) -> None:
    shown: list[str] = []
    breaks = 0

    def show(text: str) -> None:
        nonlocal breaks
        shown.append(text)
        if breaks < 2 and "".join(shown).count("line ") > 4 * (breaks + 1):
            breaks += 1
            proxy.cut(seconds=2.0)

    ended = jobs.follow_job(dashboard, job.id, show)
    assert breaks == 2 and ended.status == "SUCCEEDED" and ended.exit_code == 0
    assert "".join(shown) == dashboard.get_job_logs(job.id)
    assert "".join(shown).splitlines()[-LINES:] == [f"line {n} {'ä' * n}" for n in range(LINES)]
    # The log is requested again only after a break.
    assert proxy.count(path=f"{job.id}/logs/tail") < 12 and proxy.count(path="/logs") < 16


def test_an_unreachable_head_is_one_line(
    dashboard: Dashboard, proxy: FaultProxy, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "OUTAGE_PATIENCE_S", 3.0)
    proxy.cut(seconds=20.0)
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        jobs.follow_job(dashboard, job.id, lambda text: None)
    assert 3.0 < time.monotonic() - started < 15.0
    proxy.heal()
    assert jobs.stop_job(dashboard, job.id).ended


def test_a_job_without_output_and_an_unknown_job(
    dashboard: Dashboard, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_module, "STATUS_EVERY_S", 0.1)
    texts = list(dashboard.stream_log(job.id))
    assert "" in texts and "".join(texts) == dashboard.get_job_logs(job.id)
    for status_every_s in (0.1, 60.0):  # The answer to a status comes first, or the web socket's.
        monkeypatch.setattr(dashboard_module, "STATUS_EVERY_S", status_every_s)
        with pytest.raises(UserError, match="does not know the job none"):
            jobs.follow_job(dashboard, "none", lambda text: None)
    with pytest.raises(UserError, match=r"no job or run none at .*: it has data-follow-"):
        jobs.find_job(dashboard, "none")
