"""Plots of a sweep's trials, for its report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimic3d_platform.tuning.schema import Objective, Pbt, Sweep
from mimic3d_platform.tuning.search import importances
from mimic3d_platform.tuning.space import Parameter, Value
from mimic3d_platform.tuning.trials import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

Colour = str | tuple[float, float, float, float]

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
        """Values evenly spaced, in their order."""
        steps = max(len(values) - 1, 1)
        ticks = tuple(
            (place / steps if len(values) > 1 else 0.5, format_value(v)) for place, v in enumerate(values)
        )
        return Scale(0, 1, False, tuple(values), ticks)

    @staticmethod
    def of_range(low: float, high: float, log: bool = False) -> Scale:
        """A range, with a tick at each quarter; one of no width is widened."""
        if low == high:
            low, high = low - abs(low or 1) * 0.05, high + abs(high or 1) * 0.05
        ends = (math.log(low), math.log(high)) if log else (low, high)
        marks = [ends[0] + (ends[1] - ends[0]) * step / 4 for step in range(5)]
        ticks = tuple((step / 4, format_value(math.exp(m) if log else m)) for step, m in enumerate(marks))
        return Scale(*ends, log, (), ticks)

    @staticmethod
    def of_parameter(parameter: Parameter) -> Scale:
        """The scale of a parameter's kind."""
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


@dataclass(frozen=True)
class _Results:
    """The plotted trials: those with a result, and the best of all."""

    sweep: Sweep
    trials: list[Trial]
    best: Sequence[Trial]

    def is_best(self, trial: Trial) -> bool:
        """Whether a trial is the best one, or on the Pareto front."""
        return trial in (self.best if len(self.sweep.objectives) > 1 else self.best[:1])

    def rank(self, trial: Trial) -> float:
        """The rank of a trial from 0 to 1; 1 if it is the best or on the Pareto front."""
        if self.is_best(trial):
            return 1.0
        objective = self.sweep.objectives[0]
        values = sorted((t.metrics[objective.metric] for t in self.trials), reverse=objective.mode == "min")
        return values.index(trial.metrics[objective.metric]) / max(len(values) - 1, 1) * 0.9

    def style(self, trial: Trial) -> tuple[Colour, float, float]:
        """The colour, width and z-order of a trial's line."""
        import matplotlib

        rank = self.rank(trial)
        if rank == 1.0:
            return BEST, 2.4, 4
        if trial.status == "stopped":
            return STOPPED, 1.1, 2
        return matplotlib.colormaps[OTHERS](1 - 0.85 * rank), 1.3, 2 + rank


def save_plots(sweep: Sweep, trials: Sequence[Trial], best: Sequence[Trial], folder: Path) -> list[str]:
    """Saves every plot that the trials have data for; returns the names of the files in a report's order."""
    scored = [trial for trial in trials if trial.scores(sweep.objectives)]
    results = _Results(sweep, [trial for trial in scored if trial.status != "failed"], best)
    if not results.trials:
        return []
    figures = {"parallel.png": _parallel(results), "parameters.png": _parameters(results)}
    if len(sweep.objectives) > 1:
        figures["front.png"] = _front(results)
    if any(len(trial.reports) > 1 for trial in results.trials) or isinstance(sweep.scheduler, Pbt):
        figures["curves.png"] = _curves(_Results(sweep, scored, best))
    if shares := importances(sweep, trials):
        figures["importance.png"] = _importance(shares)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DPI)
    return list(figures)


def save_side_by_side(grids: Sequence[tuple[str, Image]], path: Path) -> None:
    """Saves sample grids, each under its caption, pixel for pixel."""
    columns = min(len(grids), 2)
    rows = math.ceil(len(grids) / columns)
    wide, high = grids[0][1].size
    figure = _figure(columns * max(wide / DPI, 3.6) + 0.3, rows * (high / DPI + 0.45))
    for place, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        ax.axis("off")
        if place < len(grids):
            ax.imshow(grids[place][1], interpolation="none")
            ax.set_title(grids[place][0], fontsize=8, loc="left")
    figure.savefig(path, dpi=DPI)


def _value_at(path: str) -> Callable[[Trial], Value]:
    return lambda trial: trial.point[path]


def _metric_of(name: str) -> Callable[[Trial], Value]:
    return lambda trial: trial.metrics[name]


def _importance(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars for each objective: the share of its variance that a parameter explains, the largest above."""
    figure = _figure(4.6 * len(shares) + 1.2, 1.4 + 0.34 * max(map(len, shares.values())))
    for ax, (metric, found) in zip(
        figure.subplots(1, len(shares), squeeze=False).flat, shares.items(), strict=True
    ):
        ordered = sorted(found.items(), key=lambda item: item[1])
        ax.barh([short_name(path) for path, _ in ordered], [share for _, share in ordered], color=BEST)
        ax.set_xlim(0, 1)
        ax.set_title(metric, fontsize=9)
        ax.set_xlabel("share of the variance")
    return figure


def _parallel(results: _Results) -> Figure:
    """Parallel coordinates: a line for each trial through its values and results; the best in red."""
    sweep, trials = results.sweep, results.trials
    axes: list[tuple[str, Scale, Callable[[Trial], Value]]] = [
        (short_name(p.path), Scale.of_parameter(p), _value_at(p.path)) for p in sweep.points.parameters
    ]
    for objective in sweep.objectives:
        values = [trial.metrics[objective.metric] for trial in trials]
        scale = Scale.of_range(min(values), max(values))
        axes.append((_named(objective, "\n"), scale, _metric_of(objective.metric)))
    figure = _figure(max(6.0, 1.8 * len(axes)), 4.6)
    ax = figure.add_subplot()
    for number, trial in enumerate(sorted(trials, key=results.rank)):
        colour, width, z = results.style(trial)
        aside = SPREAD * (number / max(len(trials) - 1, 1) - 0.5)
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
    stopped = ", dashed: stopped early" if any(trial.status == "stopped" for trial in trials) else ""
    best_is = "the Pareto front" if len(sweep.objectives) > 1 else "the best"
    ax.set_title(
        f"{len(trials)} trials; red: {best_is}, the lighter the better{stopped}", fontsize=9, loc="left"
    )
    return figure


def _parameters(results: _Results) -> Figure:
    """Each objective against each parameter, with the mean of values of a list that were tried repeatedly."""
    objectives, dimensions = results.sweep.objectives, results.sweep.points.parameters
    rows, columns = len(objectives), len(dimensions)
    figure = _figure(max(4.5, 2.9 * columns), 2.9 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, objective in enumerate(objectives):
        for column, parameter in enumerate(dimensions):
            ax, scale = grid[row][column], Scale.of_parameter(parameter)
            _plot_points(ax, scale, parameter, objective, results)
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


def _plot_points(
    ax: Axes, scale: Scale, parameter: Parameter, objective: Objective, results: _Results
) -> None:
    """Plots an objective of each trial against its value of a parameter."""
    for trial in results.trials:
        colour, _, z = results.style(trial)
        marker = "x" if trial.status == "stopped" else "o"
        at = scale.place(trial.point[parameter.path]), trial.metrics[objective.metric]
        ax.scatter(*at, color=colour, marker=marker, s=26, zorder=z)
    if parameter.is_list:
        means = []
        for value in parameter.values:
            found = [
                trial.metrics[objective.metric]
                for trial in results.trials
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


def _front(results: _Results) -> Figure:
    """The first two objectives against each other, with a line along the Pareto front."""
    first, second = results.sweep.objectives[:2]
    figure = _figure(5.4, 4.4)
    ax = figure.add_subplot()
    for trial in results.trials:
        colour, _, z = results.style(trial)
        at = trial.metrics[first.metric], trial.metrics[second.metric]
        ax.scatter(*at, color=colour, s=30, zorder=z)
        if len(results.trials) <= MAX_NUMBERED or results.is_best(trial):
            ax.annotate(str(trial.index), at, fontsize=7, xytext=(4, 3), textcoords="offset points")
    line = sorted((trial.metrics[first.metric], trial.metrics[second.metric]) for trial in results.best)
    ax.plot(*zip(*line, strict=True), color=BEST, lw=1, zorder=1)
    ax.set_xlabel(_named(first), fontsize=8.5)
    ax.set_ylabel(_named(second), fontsize=8.5)
    ax.tick_params(labelsize=7.5)
    ax.grid(alpha=0.25)
    ax.set_title("red: on the Pareto front", fontsize=9, loc="left")
    return figure


def _curves(results: _Results) -> Figure:
    """The first objective over the images of each trial; of a population, since the first generation."""
    sweep, objective = results.sweep, results.sweep.objectives[0]
    pbt = sweep.scheduler if isinstance(sweep.scheduler, Pbt) else None
    figure = _figure(6.4, 3.8)
    ax = figure.add_subplot()
    ends = {trial.index: trial.metrics[objective.metric] for trial in results.trials}
    for trial in results.trials:
        before = pbt.interval_kimg * trial.generation if pbt else 0.0
        if pbt and trial.generation and not sweep.shares_stage1:
            before += sweep.base.schedule.stage1_kimg
        points = [
            (before + report["nimg"] / 1000, report[objective.metric])
            for report in trial.reports
            if objective.metric in report
        ]
        if pbt and trial.parent in ends and points[0][0] > before:
            points.insert(0, (before, ends[trial.parent]))
        colour, width, z = results.style(trial)
        ax.plot(*zip(*points, strict=True), "-o", ms=2.5, color=colour, lw=width, zorder=z)
        if len(results.trials) <= MAX_NUMBERED or results.is_best(trial):
            ax.annotate(
                str(trial.index),
                points[-1],
                fontsize=6.5,
                xytext=(4, -2),
                textcoords="offset points",
                zorder=6,
            )
    ax.set_xlabel("kimg", fontsize=8.5)
    ax.set_ylabel(_named(objective), fontsize=8.5)
    ax.tick_params(labelsize=7.5)
    ax.grid(alpha=0.25)
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; without pyplot, which has global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _named(objective: Objective, between: str = " ") -> str:
    better = "lower" if objective.mode == "min" else "higher"
    return f"{objective.metric}{between}({better} is better)"
