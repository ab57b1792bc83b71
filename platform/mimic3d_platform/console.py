"""Output of the commands: lines, tables, and progress that is a bar on a terminal and lines in a log file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import rich.console
import rich.markup
import rich.progress
import rich.table

# Seconds between lines of progress where standard output is not a terminal.
LINE_EVERY_S = 10.0


class TrainingReport(Protocol):
    """What `Console.training` shows of a run."""

    @property
    def doing(self) -> str:
        """In a few words, such as "stage 1" or "measuring"."""

    @property
    def nimg(self) -> int:
        """Images consumed."""

    @property
    def total_nimg(self) -> int: ...

    @property
    def images_per_second(self) -> float:
        """0 while it is unknown."""

    @property
    def data_wait(self) -> float:
        """Share of the last steps' time that was spent waiting for data, from 0 to 1."""

    @property
    def seconds_left(self) -> float | None: ...

    @property
    def at_least(self) -> bool:
        """Whether `seconds_left` is a lower bound."""

    @property
    def url(self) -> str | None:
        """The run's page in MLflow, in the first report only."""


class _ShowProgress(Protocol):
    def __call__(
        self, text: str, done: int, total: int, seconds_left: float | None = None, at_least: bool = False
    ) -> None: ...


class Console:
    """Prints to standard output."""

    def __init__(self) -> None:
        self._out = rich.console.Console(highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Prints one line."""
        self._out.print(line, markup=False)

    def heading(self, line: str) -> None:
        """Prints an empty line and a line in bold."""
        self._out.print()
        self._out.print(line, style="bold", markup=False)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table, without the columns that are empty in all rows."""
        shown = [column for column in range(len(header)) if any(row[column] for row in rows)]
        table = rich.table.Table()
        for column in shown:
            table.add_column(header[column], overflow="fold")
        for row in rows:
            table.add_row(*(rich.markup.escape(row[column]) for column in shown))
        self._out.print(table, soft_wrap=False)

    def metrics(self, metrics: Mapping[int, Mapping[str, float]]) -> None:
        """Prints metrics, by images consumed and by name: a row for each name, a column for each count."""
        counts = sorted(metrics)
        names = sorted({name for found in metrics.values() for name in found})
        rows = [
            [name, *(f"{metrics[nimg][name]:.4g}" if name in metrics[nimg] else "" for nimg in counts)]
            for name in names
        ]
        self.table(["metric", *(f"at {nimg / 1000:g} kimg" for nimg in counts)], rows)

    @contextlib.contextmanager
    def progress(self, doing: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """Shows the progress of a count; the block calls the yielded function with (done, total)."""
        with self._bar() as show:
            yield lambda done, total: show(f"{doing}: {done} of {total} {unit}", done, total)

    @contextlib.contextmanager
    def training(self) -> Iterator[Callable[[TrainingReport], None]]:
        """Shows the progress of a training; the block calls the yielded function with each report."""

        def show_report(report: TrainingReport) -> None:
            if report.url:
                self.say(f"MLflow: {report.url}")
            speed = f", {report.images_per_second:.0f} images/s" if report.images_per_second else ""
            wait = f", {report.data_wait:.1%} waiting for data" if report.images_per_second else ""
            text = f"{report.doing}: {report.nimg} of {report.total_nimg} images{speed}{wait}"
            show(text, report.nimg, report.total_nimg, report.seconds_left, report.at_least)

        with self._bar() as show:
            show("checking the data and the services", 0, 1)
            yield show_report

    @contextlib.contextmanager
    def _bar(self) -> Iterator[_ShowProgress]:
        if not self._out.is_terminal:
            yield self._lines()
            return
        columns = (
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[left]}"),
            rich.progress.TimeElapsedColumn(),
        )
        with rich.progress.Progress(*columns, console=self._out) as bars:
            task = bars.add_task("", left="")

            def show(
                text: str, done: int, total: int, seconds_left: float | None = None, at_least: bool = False
            ) -> None:
                left = _time_left(seconds_left, at_least)
                bars.update(task, description=text, completed=done, total=total, left=left)

            yield show

    def _lines(self) -> _ShowProgress:
        last, started = -LINE_EVERY_S, time.monotonic()
        shown = ""

        def show(
            text: str, done: int, total: int, seconds_left: float | None = None, at_least: bool = False
        ) -> None:
            nonlocal last, shown
            now = time.monotonic()
            if text != shown and (now - last >= LINE_EVERY_S or done == total):
                left = f", {_time_left(seconds_left, at_least)}" if seconds_left is not None else ""
                self.say(f"[{now - started:5.0f} s] {text}{left}")
                last, shown = now, text

        return show


def _time_left(seconds: float | None, at_least: bool) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    bound = "at least " if at_least else ""
    return f"{bound}{minutes} min {rest:02d} s left" if minutes else f"{bound}{rest} s left"
