"""`mimic3d up`, `down`, `status`, `doctor` and `weights`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mimic3d_platform.cli.app import app
from mimic3d_platform.console import Console

if TYPE_CHECKING:
    from mimic3d_platform.local import StackStatus


@app.command()
def up(
    nodes: Annotated[
        int | None, typer.Option(help="Number of Ray nodes on this machine; by default as last time.")
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(help="CPUs of each Ray node that is started now; by default all of the machine's."),
    ] = None,
    mlflow_database: Annotated[
        str | None,
        typer.Option(
            help="MLflow's database: postgresql://USER@HOST/DB, with the password in PGPASSWORD or "
            "PGPASSFILE, or sqlite; by default as last time."
        ),
    ] = None,
    login: Annotated[
        bool | None,
        typer.Option(
            "--login/--no-login",
            help="Whether MLflow requires a login, for machines with other users; by default as last time.",
        ),
    ] = None,
) -> None:
    """Start object storage, MLflow and Ray on this machine, on loopback."""
    from mimic3d_platform import local
    from mimic3d_platform.settings import get_settings

    console = Console()
    stack = local.up(nodes=nodes, cpus=cpus, on_progress=console.say, database=mlflow_database, login=login)
    _print_stack(stack, console)
    if get_settings().mlflow_password is not None:
        console.say("MLflow requires a login; `mimic3d env` prints it")


@app.command()
def down() -> None:
    """Stop the services that `mimic3d up` started; their data is kept."""
    from mimic3d_platform import local

    console = Console()
    local.down(on_progress=console.say)
    console.say("the services are down; their data is kept")


@app.command()
def status() -> None:
    """Show the services of `mimic3d up`; the exit status is 1 if one of them does not work."""
    from mimic3d_platform import local

    stack = local.status()
    _print_stack(stack, Console())
    raise typer.Exit(0 if stack.healthy else 1)


def _print_stack(stack: StackStatus, console: Console) -> None:
    rows = [
        (service.title, "up" if service.healthy else "DOWN", service.url or "", service.detail)
        for service in stack.services.values()
    ]
    console.table(("service", "state", "where", "note"), rows)
    console.say(f"state and logs: {stack.home}")


@app.command()
def doctor() -> None:
    """Check Python, torch, GPU, Ray, S3, MLflow, weights, disk and memory; name a remedy for each fault."""
    from mimic3d_platform.cli.doctor import diagnose

    findings = diagnose()
    rows = [(finding.name, finding.state, finding.detail, finding.remedy) for finding in findings]
    Console().table(("what", "state", "found", "what to do"), rows)
    raise typer.Exit(1 if any(finding.state == "missing" for finding in findings) else 0)


@app.command()
def weights(
    stage: Annotated[
        str | None, typer.Option(help="Copy the weights to this folder or s3://… prefix, for a cluster.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Argument(help="Feature networks; by default those that a run would use.")
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download the weights now, not at first use.")
    ] = False,
) -> None:
    """List the feature networks of losses and metrics; download their weights, or stage them elsewhere."""
    from mimic3d_platform.evaluation import feature_weights

    console = Console()
    if stage is None and not names and not fetch:
        rows = [
            (
                network.name,
                network.purpose,
                "stand-in" if network.stand_in else "on request" if network.on_request else "the real one",
                "ready" if network.ready else "to fetch",
                network.source,
            )
            for network in feature_weights.describe()
        ]
        console.table(("network", "for", "kind", "state", "where"), rows)
        return
    wanted = names or [
        feature_weights.best_available(purpose, console.say) for purpose in ("perceptual", "frechet")
    ]
    if stage is None:
        for name in wanted:
            console.say(f"{name}: {feature_weights.resolve(name, console.say)}")
        return
    for place in feature_weights.stage(wanted, stage, console.say):
        console.say(f"staged {place}; set MIMIC3D_WEIGHTS={stage} on the machines that use it")
