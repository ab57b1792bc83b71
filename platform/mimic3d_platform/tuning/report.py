"""Writes a sweep's report: tables, plots, the winning configs, and a page that shows them all."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mimic3d.config import config_to_yaml
from mimic3d_platform import tracking
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.run_identity import SWEEP
from mimic3d_platform.tuning import plots
from mimic3d_platform.tuning.plots import format_value, short_name
from mimic3d_platform.tuning.schema import Pbt, Sweep
from mimic3d_platform.tuning.search import best_trials
from mimic3d_platform.tuning.sweep_file import sweep_to_yaml
from mimic3d_platform.tuning.trials import Trial, trial_config

PAGE, TABLE, MARKDOWN, WINNER, BEST = "index.html", "trials.csv", "trials.md", "winner.yaml", "best.png"
# How many of the best trials show their sample grids.
_MAX_GRIDS = 4
_CAPTIONS = {
    BEST: "Sample grids of the best trials, rendered when they ended",
    "parallel.png": "Every trial: a line through its values and its results",
    "parameters.png": "The results against each value",
    "importance.png": "The share of the results' variance that each value explains (fANOVA, finished trials)",
    "front.png": "The Pareto front",
    "curves.png": "The results over the images seen",
}


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        sweep: with the metrics' names as the runs log them.
        run_id: the sweep's run in MLflow.
        best: the best trial first; with several objectives the Pareto front.
        report: the local folder of the report.
    """

    name: str
    sweep: Sweep
    run_id: str
    trials: list[Trial]
    best: list[Trial]
    report: Path


def write_report(
    sweep: Sweep, name: str, trials: Sequence[Trial], stage1_uri: str, folder: Path
) -> list[Trial]:
    """Writes all files of a report into a folder; returns the best trials.

    Args:
        sweep: with the metrics' names as the runs log them.
        name: of the sweep.
        stage1_uri: the checkpoint that trials start from, or "".
    """
    folder.mkdir(parents=True, exist_ok=True)
    best = best_trials(sweep, trials)
    (folder / SWEEP).write_text(sweep_to_yaml(sweep), encoding="utf-8")
    (folder / TABLE).write_text(_csv(sweep, trials), encoding="utf-8")
    ordered = [*best, *(trial for trial in trials if trial not in best)]
    header, rows = table(sweep, ordered)
    (folder / MARKDOWN).write_text(_markdown(header, rows), encoding="utf-8")
    configs = []
    # Every trial on a Pareto front has a config; with one objective, only the best trial.
    for place, trial in enumerate(best if len(sweep.objectives) > 1 else best[:1]):
        file = WINNER if place == 0 else f"front-{trial.index:03d}.yaml"
        config = trial_config(sweep, trial, stage1_uri, trials)
        (folder / file).write_text(config_to_yaml(config), encoding="utf-8")
        configs.append((file, trial))
    pictures = plots.save_plots(sweep, trials, best, folder)
    if grids := _grids(sweep, best[:_MAX_GRIDS], folder):
        plots.save_side_by_side(grids, folder / BEST)
        pictures.insert(0, BEST)
    (folder / PAGE).write_text(_page(sweep, name, trials, header, rows, configs, pictures), encoding="utf-8")
    return best


def table(sweep: Sweep, trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    """The header and a row for each trial: its values, its objectives, its kimg and how it ended."""
    population = ["generation", "from"] if isinstance(sweep.scheduler, Pbt) else []
    metrics = [objective.metric for objective in sweep.objectives]
    header = ["trial", *population, *map(short_name, sweep.points.paths), *metrics, "kimg", "ended"]
    rows = []
    for trial in trials:
        parent = "" if trial.parent is None else str(trial.parent)
        rows.append(
            [
                str(trial.index),
                *([str(trial.generation), parent] if population else []),
                *(format_value(trial.point[path]) for path in sweep.points.paths),
                *(f"{trial.metrics[metric]:.4g}" if metric in trial.metrics else "" for metric in metrics),
                f"{trial.kimg:g}",
                trial.status + (f": {trial.error}" if trial.error else ""),
            ]
        )
    return header, rows


def _csv(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """Every field and metric of every trial, at full precision."""
    metrics = sorted({metric for trial in trials for metric in trial.metrics})
    own = ["index", "name", "generation", "member", "parent", "status", "nimg", "seconds"]
    last = ["checkpoint_uri", "run_id", "error"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*own, *sweep.points.paths, *metrics, *last])
    for trial in trials:
        writer.writerow(
            [
                *(getattr(trial, key) for key in own),
                *(trial.point[path] for path in sweep.points.paths),
                *(trial.metrics.get(metric, "") for metric in metrics),
                *(getattr(trial, key) for key in last),
            ]
        )
    return out.getvalue()


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _grids(sweep: Sweep, best: Sequence[Trial], folder: Path) -> list[tuple[str, Image.Image]]:
    """The last sample grid of each of the best trials, from MLflow, after its caption."""
    grids = []
    for trial in best:
        if not trial.run_id:
            continue
        try:
            place = tracking.download_artifacts(trial.run_id, "samples", folder / "samples" / trial.name)
        except UserError:
            continue  # A report without a picture is better than none.
        if pictures := sorted(place.glob("*.png")):
            for other in pictures[:-1]:
                other.unlink()
            values = ", ".join(
                f"{short_name(path)} {format_value(value)}" for path, value in trial.point.items()
            )
            scores = ", ".join(f"{o.metric} {trial.metrics[o.metric]:.4g}" for o in sweep.objectives)
            with Image.open(pictures[-1]) as picture:
                grids.append((f"trial {trial.index}: {scores}\n{values}", picture.convert("RGB")))
    return grids


def _page(
    sweep: Sweep,
    name: str,
    trials: Sequence[Trial],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    configs: Sequence[tuple[str, Trial]],
    pictures: Sequence[str],
) -> str:
    ended = [
        f"{sum(t.status == s for t in trials)} {s}" for s in ("finished", "stopped", "failed", "running")
    ]
    counts = ", ".join(part for part in ended if not part.startswith("0 "))
    aims = " and ".join(f"{objective.mode} {objective.metric}" for objective in sweep.objectives)
    winners = "".join(
        f"<li>trial {trial.index}: <code>mimic3d train <a href='{file}'>{file}</a> --name NAME</code></li>"
        for file, trial in configs
    )
    figures = "".join(
        f"<figure><figcaption>{_CAPTIONS[picture]}</figcaption><img src='{picture}'></figure>"
        for picture in pictures
    )
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; font-size: 13px; }}
td, th {{ border-bottom: 1px solid #ddd; padding: 3px 9px; text-align: right; }}
figure {{ margin: 2em 0; }} img {{ max-width: 100%; }} figcaption {{ font-weight: 600; }}
</style>
<h1>{html.escape(name)}</h1>
<p>{len(trials)} trials ({counts}), {html.escape(aims)}; {sum(trial.kimg for trial in trials):g} kimg,
{sum(trial.seconds for trial in trials) / 60:.1f} minutes of training steps in the finished ones.</p>
<h2>Winning</h2><ul>{winners or "<li>no trial has a result</li>"}</ul>
<p>The best first. <a href="{TABLE}">All metrics as CSV</a>, <a href="{SWEEP}">the sweep</a>.</p>
<table><tr>{head}</tr>{body}</table>
{figures}
</html>
"""
