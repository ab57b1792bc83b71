"""`mimic3d submit …` and `mimic3d jobs …`: jobs on a running Ray cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mimic3d_platform.cli.app import (
    Alias,
    Data,
    Extend,
    Overrides,
    Recipe,
    Register,
    RunName,
    Runs,
    SweepFile,
    SweepName,
    Workers,
    app,
)
from mimic3d_platform.console import Console
from mimic3d_platform.errors import UserError

if TYPE_CHECKING:
    from mimic3d_platform.cluster.dashboard import Dashboard
    from mimic3d_platform.cluster.jobs import Job, JobSpec

submit = typer.Typer(
    help="Submit jobs to a running Ray cluster; submitting a running job again follows it.",
    no_args_is_help=True,
)
jobs = typer.Typer(help="List, follow and stop the jobs of a Ray cluster.", no_args_is_help=True)
app.add_typer(submit, name="submit")
app.add_typer(jobs, name="jobs")

Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard, http://HEAD:8265; that of `mimic3d up` by default."),
]
WithCode = Annotated[
    bool,
    typer.Option("--with-code", help="Send this checkout's tracked sources, and run them, not the image's."),
]
Detach = Annotated[bool, typer.Option("--detach", help="Do not follow the job's output.")]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or the name of its run.")]
# `submit evaluate` and `submit data` pass on the arguments that they do not know.
_ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


class _PassingCommand(TyperCommand):
    """A command that passes arguments on to `mimic3d <its name>`; `--help` shows the help of both."""

    def parse_args(self, context: Any, args: list[str]) -> list[str]:  # Typer's contexts are private.
        if not {"-h", "--help"}.intersection(args):
            return super().parse_args(context, args)
        root = context.find_root()
        command, path = root.command, ""
        for name in (self.name or "", *args):
            found = command.get_command(context, name) if isinstance(command, TyperGroup) else None
            if found is None:
                break
            command, path = found, f"{path} {name}".strip()
        for each, shown in ((self, f"submit {self.name}"), (command, path)):
            typer.echo(each.get_help(each.context_class(each, info_name=shown, parent=root)))
        context.exit()
        raise AssertionError("`exit` raises")


@submit.command("train")
def submit_train(
    recipe: Recipe,
    data: Data = None,
    name: RunName = None,
    overrides: Overrides = None,
    workers: Workers = None,
    runs: Runs = None,
    register: Register = None,
    alias: Alias = None,
    extend: Extend = False,
    address: Address = None,
    with_code: WithCode = False,
    detach: Detach = False,
) -> None:
    """Run `mimic3d train` on the cluster."""
    from mimic3d_platform.cli.job_specs import TrainingOptions, training_job
    from mimic3d_platform.cluster.resources import fewest_workers

    options = TrainingOptions(recipe, data, overrides or (), name, workers, runs, register, alias, extend)
    _submit(training_job(options), address, fewest_workers(workers), with_code, detach)


@submit.command("sweep")
def submit_sweep(
    file: SweepFile,
    data: Data = None,
    name: SweepName = None,
    overrides: Overrides = None,
    runs: Runs = None,
    extend: Extend = False,
    address: Address = None,
    with_code: WithCode = False,
    detach: Detach = False,
) -> None:
    """Run `mimic3d sweep` on the cluster; its report is in MLflow."""
    from mimic3d_platform.cli.job_specs import SweepOptions, sweep_job

    options = SweepOptions(file, data, overrides or (), name, runs, extend)
    _submit(sweep_job(options), address, 1, with_code, detach)


@submit.command("evaluate", cls=_PassingCommand, context_settings=_ANY_ARGUMENTS)
def submit_evaluate(
    context: typer.Context, address: Address = None, with_code: WithCode = False, detach: Detach = False
) -> None:
    """Run `mimic3d evaluate` on the cluster, with the same arguments."""
    _submit_command("evaluate", context, address, with_code, detach)


@submit.command("data", cls=_PassingCommand, context_settings=_ANY_ARGUMENTS)
def submit_data(
    context: typer.Context, address: Address = None, with_code: WithCode = False, detach: Detach = False
) -> None:
    """Run `mimic3d data` on the cluster, with the same arguments, such as `render s3://…`."""
    _submit_command("data", context, address, with_code, detach)


@jobs.command("list")
def jobs_list(address: Address = None) -> None:
    """List the jobs, the newest first."""
    from mimic3d_platform.cluster.jobs import list_jobs

    found = list_jobs(_connect(address))
    rows = [(job.id, job.kind, job.run, job.status, _start_time(job), _duration(job)) for job in found]
    Console().table(("job", "kind", "run", "state", "since", "took"), rows)


@jobs.command("logs")
def jobs_logs(
    job: JobName,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new output until the job ends.")
    ] = False,
) -> None:
    """Show a job's output."""
    from mimic3d_platform.cluster.jobs import find_job

    dashboard = _connect(address)
    found = find_job(dashboard, job)
    if follow:
        _follow(dashboard, found)
    typer.echo(dashboard.get_job_logs(found.id), nl=False)


@jobs.command("stop")
def jobs_stop(job: JobName, address: Address = None) -> None:
    """Stop a job after a last checkpoint; if it is submitted again, its run resumes from there."""
    from mimic3d_platform.cluster.jobs import find_job, stop_job

    dashboard = _connect(address)
    found = find_job(dashboard, job)
    if not found.ended:
        found = stop_job(dashboard, found.id)
    if not found.ended:
        raise UserError(f"the job {found.id} is still {found.status}: check `mimic3d jobs list` in a minute")
    Console().say(f"job {found.id}: {found.status}")


def _connect(address: str | None) -> Dashboard:
    from mimic3d_platform.cluster.connect import find_cluster
    from mimic3d_platform.cluster.dashboard import Dashboard

    return Dashboard(find_cluster(address))


def _submit_command(
    kind: str, context: typer.Context, address: str | None, with_code: bool, detach: bool
) -> None:
    from mimic3d_platform.cli.job_specs import command_job

    root = context.find_root().command
    assert isinstance(root, TyperGroup)
    _submit(command_job(root, kind, context.args), address, 1, with_code, detach)


def _submit(spec: JobSpec, address: str | None, workers: int, with_code: bool, detach: bool) -> None:
    """Submits a job to a cluster that has room for `workers`, and follows it unless `detach` is set."""
    from mimic3d_platform.cluster.jobs import submit

    dashboard = _connect(address)
    dashboard.require(workers)
    job, new = submit(dashboard, spec, with_code=with_code)
    console = Console()
    console.say(f"job {job.id}: {'submitted to' if new else 'runs already at'} {dashboard.cluster.url}")
    if detach:
        console.say(f"`mimic3d jobs logs {job.id} --follow` shows its output")
        return
    _follow(dashboard, job)


def _follow(dashboard: Dashboard, job: Job) -> None:
    """Shows a job's output until it ends, or until Ctrl-C, which leaves the job running.

    Raises:
        typer.Exit: always, with the job's own exit status; 130 after Ctrl-C.
    """
    from mimic3d_platform.cluster.jobs import follow_job

    console = Console()
    try:
        ended = follow_job(dashboard, job.id, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        console.say(
            f"detached: the job {job.id} keeps running; `mimic3d jobs logs {job.id} --follow` shows it "
            f"again, `mimic3d jobs stop {job.id}` ends it"
        )
        raise SystemExit(130) from None
    console.say(f"job {ended.id}: {ended.status}")
    if ended.status != "SUCCEEDED":
        if ended.exit_code is None and ended.message:
            typer.echo(f"error: {ended.message[:300]}", err=True)
        raise typer.Exit(ended.exit_code or 1)
    raise typer.Exit(0)


def _start_time(job: Job) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(job.start_time)) if job.start_time else ""


def _duration(job: Job) -> str:
    if not job.start_time:
        return ""
    minutes, seconds = divmod(round((job.end_time or time.time()) - job.start_time), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
