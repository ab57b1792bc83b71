"""`mimic3d up`, `down`, `status`, `doctor`, `weights`: what a run stands on."""

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
        int | None, typer.Option(help="Ray nodes on this machine; as many as there were when not given.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs that each Ray node hands out.")] = None,
    mlflow_database: Annotated[
        str | None,
        typer.Option(help="PostgreSQL for MLflow, postgresql://USER@HOST/DB; its password in PGPASSWORD."),
    ] = None,
) -> None:
    """Start object storage, MLflow and Ray on this machine, on loopback."""
    from mimic3d_platform import local

    console = Console()
    found = local.up(nodes=nodes, cpus=cpus, on_progress=console.say, database=mlflow_database)
    _print_stack(found, console)


@app.command()
def down() -> None:
    """Stop what `mimic3d up` started; all data is kept."""
    from mimic3d_platform import local

    console = Console()
    local.down(on_progress=console.say)
    console.say("the stack is down; its data is kept")


@app.command()
def status() -> None:
    """Say what of the stack runs; the exit status is 1 when something is amiss."""
    from mimic3d_platform import local

    found = local.status()
    _print_stack(found, Console())
    raise typer.Exit(0 if found.healthy else 1)


def _print_stack(stack: StackStatus, console: Console) -> None:
    rows = [
        (service.title, "up" if service.healthy else "DOWN", service.url or "", service.detail)
        for service in stack.services.values()
    ]
    console.table(("service", "state", "where", "note"), rows)
    console.say(f"state and logs: {stack.home}")


@app.command()
def doctor() -> None:
    """Say what of Python, torch, GPU, Ray, S3, MLflow and weights works, and what to do about the rest."""
    from mimic3d_platform.local.doctor import diagnose

    findings = diagnose()
    rows = [(f.name, f.state, f.detail, f.remedy) for f in findings]
    Console().table(("what", "state", "found", "what to do"), rows)
    raise typer.Exit(1 if any(f.state == "missing" for f in findings) else 0)


@app.command()
def weights(
    stage: Annotated[str | None, typer.Option(help="Copy the weights there: a folder or s3://…")] = None,
    names: Annotated[list[str] | None, typer.Argument(help="Networks; those in use when none.")] = None,
) -> None:
    """Show the feature networks of losses and metrics, or stage them for clusters without internet."""
    from mimic3d_platform.evaluation import feature_weights as store

    console = Console()
    if stage is None and not names:
        rows = [
            (
                w.name,
                w.purpose,
                "stand-in" if w.stand_in else "the real one",
                "ready" if w.ready else "",
                w.source,
            )
            for w in store.describe()
        ]
        console.table(("network", "for", "kind", "where"), rows)
        return
    wanted = names or [store.best_available(purpose, console.say) for purpose in ("perceptual", "frechet")]
    if stage is None:
        for name in wanted:
            console.say(f"{name}: {store.resolve(name, console.say)}")
        return
    for place in store.stage(wanted, stage, console.say):
        console.say(f"staged {place}; set MIMIC3D_WEIGHTS={stage} where they are to be used")
