"""`mimic3d submit …` and `mimic3d jobs …`: work on a running Ray cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimic3d_platform.cli.app import Overrides, app
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    from mimic3d_platform.cluster.dashboard import Cluster
    from mimic3d_platform.cluster.jobs import Job, Work

submit = typer.Typer(
    help="Send work to a running Ray cluster; the same work sent twice is one job.", no_args_is_help=True
)
jobs = typer.Typer(help="Find the jobs of a Ray cluster again.", no_args_is_help=True)
app.add_typer(submit, name="submit")
app.add_typer(jobs, name="jobs")

Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard, http://HEAD:8265; that of `mimic3d up` when not given."),
]
WithCode = Annotated[
    bool, typer.Option("--with-code", help="Send this checkout's tracked sources, for trying changes.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Do not follow the job's output.")]
# What a command does not know itself it hands on.
_ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or the name of its run.")]


@submit.command("train")
def submit_train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a config file (YAML) here.")],
    data: Annotated[str | None, typer.Option(help="The data set's folder: s3://…")] = None,
    name: Annotated[str | None, typer.Option(help="The run's name; the recipe's when not given.")] = None,
    overrides: Overrides = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Ray Train workers: a number, or LEAST:MOST; all GPUs or CPUs by default."),
    ] = None,
    runs: Annotated[str | None, typer.Option(help="The folder of all runs: s3://…")] = None,
    register: Annotated[str | None, typer.Option(help="Register the generator under this name.")] = None,
    alias: Annotated[str | None, typer.Option(help="Give the registered version this alias.")] = None,
    address: Address = None,
    with_code: WithCode = False,
    detach: Detach = False,
) -> None:
    """Train a recipe on the cluster: `mimic3d train`, there."""
    from mimic3d_platform.cli.job_specs import fewest_workers, training_work

    work = training_work(recipe, data, overrides or [], name, workers, runs, register, alias)
    _submit(work, address, fewest_workers(workers), with_code, detach)


@submit.command("sweep")
def submit_sweep(
    file: Annotated[Path, typer.Argument(help="The sweep file here, such as sweeps/imitation.yaml.")],
    data: Annotated[str | None, typer.Option(help="The data set's folder: s3://…")] = None,
    name: Annotated[str | None, typer.Option(help="The sweep's name; the file's when not given.")] = None,
    overrides: Overrides = None,
    runs: Annotated[str | None, typer.Option(help="The folder of all runs: s3://…")] = None,
    address: Address = None,
    with_code: WithCode = False,
    detach: Detach = False,
) -> None:
    """Try many settings on the cluster: `mimic3d sweep`, there. The report is in MLflow."""
    from mimic3d_platform.cli.job_specs import sweep_work

    _submit(sweep_work(file, data, overrides or [], name, runs), address, 1, with_code, detach)


@submit.command("evaluate", context_settings=_ANY_ARGUMENTS)
def submit_evaluate(
    context: typer.Context, address: Address = None, with_code: WithCode = False, detach: Detach = False
) -> None:
    """Measure a model there: what follows is as for `mimic3d evaluate`."""
    _submit_command("evaluate", context, address, with_code, detach)


@submit.command("data", context_settings=_ANY_ARGUMENTS)
def submit_data(
    context: typer.Context, address: Address = None, with_code: WithCode = False, detach: Detach = False
) -> None:
    """Work on data sets there: what follows is as for `mimic3d data`, such as `render s3://…`."""
    _submit_command("data", context, address, with_code, detach)


@jobs.command("list")
def jobs_list(address: Address = None) -> None:
    """List the jobs, the newest first."""
    from mimic3d_platform.cluster.jobs import jobs as list_jobs

    found = list_jobs(_connect(address))
    rows = [(job.id, job.kind, job.run, job.status, _when(job), _took(job)) for job in found]
    Console().table(("job", "kind", "run", "state", "since", "took"), rows)


@jobs.command("logs")
def jobs_logs(
    job: JobName,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Show what a job has printed."""
    from mimic3d_platform.cluster import jobs

    cluster = _connect(address)
    found = jobs.find(cluster, job)
    if follow:
        _follow(cluster, found)
    typer.echo(jobs.logs(cluster, found.id), nl=False)


@jobs.command("stop")
def jobs_stop(job: JobName, address: Address = None) -> None:
    """Stop a job; the same work submitted again goes on from its last checkpoint."""
    from mimic3d_platform.cluster import jobs

    cluster = _connect(address)
    found = jobs.find(cluster, job)
    if not found.over:
        found = jobs.stop(cluster, found.id)
    if not found.over:
        raise UserError(f"the job {found.id} is still {found.status}: look at `mimic3d jobs list` again")
    Console().say(f"job {found.id}: {found.status}")


def _connect(address: str | None) -> Cluster:
    from mimic3d_platform.cluster.dashboard import find_cluster

    cluster = find_cluster(address)
    cluster.check()
    return cluster


def _submit_command(
    kind: str, context: typer.Context, address: str | None, with_code: bool, detach: bool
) -> None:
    from mimic3d_platform.cli.job_specs import command_work

    _submit(command_work(kind, context.args), address, 1, with_code, detach)


def _submit(work: Work, address: str | None, workers: int, with_code: bool, detach: bool) -> None:
    """Sends the work where it fits, and follows it."""
    from mimic3d_platform.cluster.jobs import submit as send

    cluster = _connect(address)
    cluster.require(workers)
    job, new = send(cluster, work, with_code=with_code)
    console = Console()
    console.say(f"job {job.id}: {'submitted to' if new else 'runs already at'} {cluster.url}")
    if detach:
        console.say(f"`mimic3d jobs logs {job.id} --follow` shows its output")
        return
    _follow(cluster, job)


def _follow(cluster: Cluster, job: Job) -> None:
    """Shows a job's output to its end; leaves with the job's own exit status."""
    from mimic3d_platform.cluster.jobs import detachable, follow

    console = Console()
    with detachable(cluster, job, console.say):
        ended = follow(cluster, job.id, lambda text: typer.echo(text, nl=False))
    console.say(f"job {ended.id}: {ended.status}")
    if ended.status != "SUCCEEDED":
        if ended.exit_code is None and ended.message:
            typer.echo(f"error: {ended.message[:300]}", err=True)
        raise typer.Exit(ended.exit_code or 1)
    raise typer.Exit(0)


def _when(job: Job) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else ""


def _took(job: Job) -> str:
    if not job.started:
        return ""
    minutes, seconds = divmod(round((job.ended or time.time()) - job.started), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
