"""What the command prints: lines, tables, and progress that also reads well in a log file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import rich.console
import rich.markup
import rich.progress
import rich.table

if TYPE_CHECKING:
    from mimic3d_platform.training.progress import Report

# A log file gets a line of progress this often; a terminal has a bar.
LINE_EVERY_S = 10.0


class Console:
    """Writes to standard output."""

    def __init__(self) -> None:
        self._out = rich.console.Console(highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """One line."""
        self._out.print(line, markup=False)

    def heading(self, line: str) -> None:
        """One line that opens a part."""
        self._out.print()
        self._out.print(line, style="bold", markup=False)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose columns without content are left out."""
        shown = [column for column in range(len(header)) if any(row[column] for row in rows)]
        table = rich.table.Table()
        for column in shown:
            table.add_column(header[column], overflow="fold")
        for row in rows:
            table.add_row(*(rich.markup.escape(row[column]) for column in shown))
        self._out.print(table, soft_wrap=False)

    def metrics(self, metrics: Mapping[int, Mapping[str, float]]) -> None:
        """A row for each metric, a column for each moment at which it was measured."""
        moments = sorted(metrics)
        names = sorted({name for found in metrics.values() for name in found})
        rows = [
            [name, *(f"{metrics[at][name]:.4g}" if name in metrics[at] else "" for at in moments)]
            for name in names
        ]
        self.table(["metric", *(f"at {at / 1000:g} kimg" for at in moments)], rows)

    @contextlib.contextmanager
    def progress(self, doing: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A bar over a count: the block gets a function of (done, total)."""
        with self._bar() as move:
            yield lambda done, total: move(f"{doing}: {done} of {total} {unit}", done, total, None)

    @contextlib.contextmanager
    def training(self) -> Iterator[Callable[[Report], None]]:
        """A bar over a run's images: the block gets a function of its reports."""

        def show(report: Report) -> None:
            if report.url:
                self.say(f"MLflow: {report.url}")
            speed = f", {report.images_per_second:.0f} images/s" if report.images_per_second else ""
            wait = f", {report.data_wait:.1%} waiting for data" if report.images_per_second else ""
            what = f"{report.doing}: {report.nimg} of {report.total_nimg} images{speed}{wait}"
            move(what, report.nimg, report.total_nimg, report.seconds_left, report.at_least)

        with self._bar() as move:
            move("checking the data and the services", 0, 1, None)
            yield show

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Callable[..., None]]:
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

            def move(what: str, done: int, total: int, left: float | None, at_least: bool = False) -> None:
                bars.update(task, description=what, completed=done, total=total, left=_left(left, at_least))

            yield move

    def _lines(self) -> Callable[..., None]:
        last, started = -LINE_EVERY_S, time.monotonic()
        shown = ""

        def move(what: str, done: int, total: int, left: float | None, at_least: bool = False) -> None:
            nonlocal last, shown
            now = time.monotonic()
            if what != shown and (now - last >= LINE_EVERY_S or done == total):
                self.say(
                    f"[{now - started:5.0f} s] {what}"
                    + (f", {_left(left, at_least)}" if left is not None else "")
                )
                last, shown = now, what

        return move


def _left(seconds: float | None, at_least: bool = False) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    least = "at least " if at_least else ""
    return f"{least}{minutes} min {rest:02d} s left" if minutes else f"{least}{rest} s left"
