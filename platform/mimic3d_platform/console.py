"""Output of the commands: lines, tables, and progress that is a bar on a terminal and lines in a log file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import rich.console
import rich.markup
import rich.table

# Columns of a table in a file or a pipe, where a program may read it: no cell is folded.
_WIDE = 10_000
# Seconds between lines of progress where standard output is not a terminal.
LINE_EVERY_S = 10.0


class ShowProgress(Protocol):
    """Updates a bar: text, done, total, the time left and whether that is a lower bound."""

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
        out = self._out if self._out.is_terminal else rich.console.Console(highlight=False, width=_WIDE)
        out.print(table, soft_wrap=False)

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
        with self.bar() as show:
            yield lambda done, total: show(f"{doing}: {done} of {total} {unit}", done, total)

    @contextlib.contextmanager
    def bar(self) -> Iterator[ShowProgress]:
        """Shows a bar, or lines where standard output is not a terminal; the block updates it."""
        if not self._out.is_terminal:
            yield self._lines()
            return
        import rich.progress  # A tenth of the time that `mimic3d --help` takes.

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

    def _lines(self) -> ShowProgress:
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
