"""Plots of a sweep's trials, for its report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimic3d_platform.tuning.schema import Objective, Pbt, Sweep
from mimic3d_platform.tuning.space import Parameter, Value
from mimic3d_platform.tuning.trials import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

DPI = 110
# Colours of trials: the best, the others by rank, those that were stopped early.
BEST, OTHERS, STOPPED = "#c8102e", "viridis_r", (0.6, 0.6, 0.6, 0.6)
# With more trials in a plot, only the best are numbered.
MAX_NUMBERED = 16
# Trials with the same value of a list are spread over this share of an axis, so that no line hides another.
SPREAD = 0.045
# Tick labels with more characters than these altogether are rotated.
MAX_CHARACTERS = 36
_LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}


@dataclass(frozen=True)
class Scale:
    """Positions of values on an axis: a list evenly spaced, a range by the value or its logarithm.

    Attributes:
        low: of a range; its logarithm if `log`.
        values: the list; empty for a range.
        ticks: (position, label), positions from 0 to 1.
    """

    low: float
    high: float
    log: bool
    values: tuple[Value, ...]
    ticks: tuple[tuple[float, str], ...]

    @staticmethod
    def of_list(values: Sequence[Value]) -> Scale:
        steps = max(len(values) - 1, 1)
        ticks = tuple(
            (place / steps if len(values) > 1 else 0.5, format_value(v)) for place, v in enumerate(values)
        )
        return Scale(0, 1, False, tuple(values), ticks)

    @staticmethod
    def of_range(low: float, high: float, log: bool = False) -> Scale:
        if low == high:
            low, high = low - abs(low or 1) * 0.05, high + abs(high or 1) * 0.05
        ends = (math.log(low), math.log(high)) if log else (low, high)
        marks = [ends[0] + (ends[1] - ends[0]) * step / 4 for step in range(5)]
        ticks = tuple((step / 4, format_value(math.exp(m) if log else m)) for step, m in enumerate(marks))
        return Scale(*ends, log, (), ticks)

    @staticmethod
    def of_parameter(parameter: Parameter) -> Scale:
        if parameter.is_list:
            return Scale.of_list(parameter.values)
        low, high = parameter.values[:2]
        return Scale.of_range(low, high, parameter.kind in ("loguniform", "logint"))

    def place(self, value: Value) -> float:
        """The position of a value, from 0 to 1."""
        if self.values:
            return self.ticks[self.values.index(value)][0]
        return ((math.log(value) if self.log else value) - self.low) / (self.high - self.low)


def format_value(value: Value) -> str:
    """A value as a table and an axis show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short_name(path: str) -> str:
    """`patch_scale` of `imitation.patch_scale`."""
    return path.rsplit(".", 1)[-1]


def save_plots(sweep: Sweep, trials: Sequence[Trial], best: Sequence[Trial], folder: Path) -> list[str]:
    """Saves every plot that the trials have data for; returns the names of the files in a report's order."""
    scored = [trial for trial in trials if trial.scores(sweep.objectives) and trial.status != "failed"]
    if not scored:
        return []
    figures = {
        "parallel.png": parallel(sweep, scored, best),
        "parameters.png": parameters(sweep, scored, best),
    }
    if len(sweep.objectives) > 1:
        figures["front.png"] = front(sweep, scored, best)
    if any(len(trial.reports) > 1 for trial in scored) or isinstance(sweep.scheduler, Pbt):
        figures["curves.png"] = curves(sweep, trials, best)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)
    return list(figures)


def parallel(sweep: Sweep, scored: Sequence[Trial], best: Sequence[Trial]) -> Figure:
    """Parallel coordinates: a line for each trial through its values and results; the best in red."""
    dimensions = sweep.points.parameters
    axes = [
        (short_name(p.path), Scale.of_parameter(p), lambda t, path=p.path: t.point[path]) for p in dimensions
    ]
    for objective in sweep.objectives:
        values = [trial.metrics[objective.metric] for trial in scored]
        axes.append((_named(objective, "\n"), _span(values), lambda t, m=objective.metric: t.metrics[m]))
    figure, ax = _figure(max(6.0, 1.8 * len(axes)), 4.6)
    order = sorted(scored, key=lambda trial: _rank(trial, sweep, scored, best))
    for number, trial in enumerate(order):
        colour, width, z = _style(trial, sweep, scored, best)
        aside = SPREAD * (number / max(len(order) - 1, 1) - 0.5)
        places = [scale.place(value(trial)) + (aside if scale.values else 0.0) for _, scale, value in axes]
        style = "--" if trial.status == "stopped" else "-"
        ax.plot(range(len(axes)), places, style, color=colour, lw=width, zorder=z, alpha=0.9)
    for at, (_, scale, _) in enumerate(axes):
        ax.axvline(at, color="0.25", lw=0.8, zorder=5)
        for place, text in scale.ticks:
            # Left of the first axis there is room for the names of cases.
            x, align = (at - 0.03, "right") if at == 0 else (at + 0.03, "left")
            ax.text(x, place, text, fontsize=7.5, ha=align, va="center", zorder=6, bbox=_LABEL_BOX)
    ax.set_xticks(range(len(axes)), [name for name, _, _ in axes], fontsize=8.5)
    ax.set(xlim=(-0.05, len(axes) - 0.6), ylim=(-0.06, 1.06), yticks=[])
    for side in ("left", "right", "top", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
    stopped = ", dashed: stopped early" if any(trial.status == "stopped" for trial in scored) else ""
    best_is = "the Pareto front" if len(sweep.objectives) > 1 else "the best"
    ax.set_title(
        f"{len(scored)} trials; red: {best_is}, the lighter the better{stopped}", fontsize=9, loc="left"
    )
    return figure


def parameters(sweep: Sweep, scored: Sequence[Trial], best: Sequence[Trial]) -> Figure:
    """Each objective against each parameter, with the mean of values of a list that were tried repeatedly."""
    dimensions = sweep.points.parameters
    rows, columns = len(sweep.objectives), len(dimensions)
    figure, grid = _figure(max(4.5, 2.9 * columns), 2.9 * rows + 0.4, rows, columns)
    for row, objective in enumerate(sweep.objectives):
        for column, parameter in enumerate(dimensions):
            ax, scale = grid[row][column], Scale.of_parameter(parameter)
            _points(ax, scale, parameter, objective, sweep, scored, best)
            ticks, texts = zip(*scale.ticks, strict=True)
            long = sum(map(len, texts)) > MAX_CHARACTERS
            turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if long else {}
            ax.set_xticks(ticks, texts, fontsize=7.5, **turned)
            ax.set_xlim(-0.12, 1.12)
            ax.tick_params(axis="y", labelsize=7.5)
            ax.grid(alpha=0.25)
            if row == rows - 1:
                ax.set_xlabel(short_name(parameter.path), fontsize=8.5)
            if column == 0:
                ax.set_ylabel(_named(objective), fontsize=8.5)
    return figure


def _points(
    ax: Axes,
    scale: Scale,
    parameter: Parameter,
    objective: Objective,
    sweep: Sweep,
    scored: Sequence[Trial],
    best: Sequence[Trial],
) -> None:
    for trial in scored:
        colour, _, z = _style(trial, sweep, scored, best)
        marker = "x" if trial.status == "stopped" else "o"
        at = scale.place(trial.point[parameter.path]), trial.metrics[objective.metric]
        ax.scatter(*at, color=colour, marker=marker, s=26, zorder=z)
    if parameter.is_list:
        means = []
        for value in parameter.values:
            found = [
                trial.metrics[objective.metric]
                for trial in scored
                if trial.point[parameter.path] == value and trial.status == "finished"
            ]
            if len(found) > 1:
                means.append((scale.place(value), sum(found) / len(found)))
        if len(means) > 1:
            # Values in words have no order: no line between them.
            words = any(isinstance(value, str) for value in parameter.values)
            style = {"marker": "_", "ms": 18, "ls": ""} if words else {"lw": 1.2}
            ax.plot(*zip(*means, strict=True), color="0.35", zorder=1, label="mean", **style)
            ax.legend(fontsize=7, frameon=False)


def front(sweep: Sweep, scored: Sequence[Trial], best: Sequence[Trial]) -> Figure:
    """The first two objectives against each other, with a line along the Pareto front."""
    first, second = sweep.objectives[:2]
    figure, ax = _figure(5.4, 4.4)
    for trial in scored:
        colour, _, z = _style(trial, sweep, scored, best)
        at = trial.metrics[first.metric], trial.metrics[second.metric]
        ax.scatter(*at, color=colour, s=30, zorder=z)
        if len(scored) <= MAX_NUMBERED or trial in best:
            ax.annotate(str(trial.index), at, fontsize=7, xytext=(4, 3), textcoords="offset points")
    line = sorted((trial.metrics[first.metric], trial.metrics[second.metric]) for trial in best)
    ax.plot(*zip(*line, strict=True), color=BEST, lw=1, zorder=1)
    ax.set_xlabel(_named(first), fontsize=8.5)
    ax.set_ylabel(_named(second), fontsize=8.5)
    ax.tick_params(labelsize=7.5)
    ax.grid(alpha=0.25)
    ax.set_title("red: on the Pareto front", fontsize=9, loc="left")
    return figure


def curves(sweep: Sweep, trials: Sequence[Trial], best: Sequence[Trial]) -> Figure:
    """The first objective over the images of each trial; of a population, since the first generation."""
    objective, pbt = sweep.objectives[0], sweep.scheduler if isinstance(sweep.scheduler, Pbt) else None
    figure, ax = _figure(6.4, 3.8)
    scored = [trial for trial in trials if trial.scores(sweep.objectives)]
    ends = {trial.index: trial.metrics[objective.metric] for trial in scored}
    for trial in scored:
        before = pbt.interval_kimg * trial.generation if pbt else 0.0
        if pbt and trial.generation and not sweep.forks:
            before += sweep.base.schedule.stage1_kimg
        points = [
            (before + report["nimg"] / 1000, report[objective.metric])
            for report in trial.reports
            if objective.metric in report
        ]
        if pbt and trial.parent in ends and points[0][0] > before:
            points.insert(0, (before, ends[trial.parent]))
        colour, width, z = _style(trial, sweep, scored, best)
        ax.plot(*zip(*points, strict=True), "-o", ms=2.5, color=colour, lw=width, zorder=z)
        if len(scored) <= MAX_NUMBERED or _is_best(trial, sweep, best):
            text = {"fontsize": 6.5, "xytext": (4, -2), "textcoords": "offset points", "zorder": 6}
            ax.annotate(str(trial.index), points[-1], **text)
    ax.set_xlabel("kimg", fontsize=8.5)
    ax.set_ylabel(_named(objective), fontsize=8.5)
    ax.tick_params(labelsize=7.5)
    ax.grid(alpha=0.25)
    return figure


def save_side_by_side(grids: Sequence[tuple[str, Image]], path: Path) -> None:
    """Saves sample grids, each under its caption, pixel for pixel."""
    columns = min(len(grids), 2)
    rows = math.ceil(len(grids) / columns)
    wide, high = grids[0][1].size
    figure, cells = _figure(columns * max(wide / DPI, 3.6) + 0.3, rows * (high / DPI + 0.45), rows, columns)
    for place in range(rows * columns):
        ax = cells[place // columns][place % columns]
        ax.axis("off")
        if place < len(grids):
            ax.imshow(grids[place][1], interpolation="none")
            ax.set_title(grids[place][0], fontsize=8, loc="left")
    figure.savefig(path, dpi=DPI)


def _figure(width: float, height: float, rows: int = 0, columns: int = 0) -> tuple[Figure, Any]:
    """A figure and its axes, or an array of rows x columns axes; without pyplot, which has global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False) if rows else figure.subplots()


def _span(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    return Scale.of_range(low, high)


def _named(objective: Objective, between: str = " ") -> str:
    better = "lower" if objective.mode == "min" else "higher"
    return f"{objective.metric}{between}({better} is better)"


def _rank(trial: Trial, sweep: Sweep, scored: Sequence[Trial], best: Sequence[Trial]) -> float:
    """The rank of a trial from 0 to 1; 1 if it is the best or on the Pareto front."""
    if _is_best(trial, sweep, best):
        return 1.0
    objective = sweep.objectives[0]
    values = sorted((other.metrics[objective.metric] for other in scored), reverse=objective.mode == "min")
    return values.index(trial.metrics[objective.metric]) / max(len(values) - 1, 1) * 0.9


def _is_best(trial: Trial, sweep: Sweep, best: Sequence[Trial]) -> bool:
    return trial in (best if len(sweep.objectives) > 1 else best[:1])


def _style(
    trial: Trial, sweep: Sweep, scored: Sequence[Trial], best: Sequence[Trial]
) -> tuple[Any, float, float]:
    """The colour, width and z-order of a trial's line."""
    import matplotlib

    rank = _rank(trial, sweep, scored, best)
    if rank == 1.0:
        return BEST, 2.4, 4
    if trial.status == "stopped":
        return STOPPED, 1.1, 2
    return matplotlib.colormaps[OTHERS](1 - 0.85 * rank), 1.3, 2 + rank
