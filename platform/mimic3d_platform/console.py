"""Output of the commands: lines, tables, and progress that is a bar on a terminal and lines in a log file."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import rich.console
import rich.markup
import rich.table

# Columns of a table in a file or a pipe, where a program may read it: no cell is folded.
_WIDE = 10_000
# Seconds between lines of progress where standard output is not a terminal, and the seconds that a part of
# the work, named by the text before the colon, has to last to get a line of its own.
LINE_EVERY_S, LASTING_S = 10.0, 2.0


class ShowProgress(Protocol):
    """Updates a bar: text, done, total (0 where it is unknown), the time left and whether that is a guess."""

    def __call__(
        self, text: str, done: int, total: int, seconds_left: float | None = None, rough: bool = False
    ) -> None: ...


class Console:
    """Prints to standard output, or to standard error where the output itself is for a program."""

    def __init__(self, *, stderr: bool = False) -> None:
        self._stderr = stderr
        self._out = rich.console.Console(highlight=False, soft_wrap=True, stderr=stderr)

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
        out = (
            self._out
            if self._out.is_terminal
            else rich.console.Console(highlight=False, width=_WIDE, stderr=self._stderr)
        )
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
        """Shows the progress of a count; the block calls the yielded function with (done, total).

        The time left follows from the speed since the first count, at which the work itself begins.
        """
        first: tuple[float, int] | None = None
        with self.bar() as show:

            def advance(done: int, total: int) -> None:
                nonlocal first
                now = time.monotonic()
                if first is None:
                    first = (now, done)
                began, before = first
                left = (total - done) * (now - began) / (done - before) if done > before else None
                show(f"{doing}: {done} of {total} {unit}", done, total, left)

            show(f"{doing}: starting", 0, 0)
            yield advance

    @contextlib.contextmanager
    def working(self, doing: str) -> Iterator[None]:
        """Shows that work of unknown length is done; shows nothing where it ends at once."""
        with self.bar() as show:
            show(doing, 0, 0)
            yield

    @contextlib.contextmanager
    def bar(self) -> Iterator[ShowProgress]:
        """Shows a bar, or lines where standard output is not a terminal; the block updates it."""
        if not self._out.is_terminal:
            with _Lines(self.say) as lines:
                yield lines.show
            return
        import rich.progress  # A tenth of the time that `mimic3d --help` takes.

        columns = (
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[left]}"),
            rich.progress.TimeElapsedColumn(),
        )
        with rich.progress.Progress(*columns, console=self._out) as bars:
            task = bars.add_task("", left="", total=None)

            def show(
                text: str, done: int, total: int, seconds_left: float | None = None, rough: bool = False
            ) -> None:
                left = _time_left(seconds_left, rough)
                bars.update(task, description=text, completed=done, total=total or None, left=left)

            yield show


class _Lines:
    """Progress as lines of a log: every `LINE_EVERY_S`, the last text again if nothing has changed."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began = self._printed = time.monotonic()
        self._shown, self._part, self._part_shown = "", "", True
        self._part_began = self._began
        self._state: tuple[str, float | None, bool, float] | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress lines", daemon=True)

    def __enter__(self) -> _Lines:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def show(
        self, text: str, done: int, total: int, seconds_left: float | None = None, rough: bool = False
    ) -> None:
        now = time.monotonic()
        with self._lock:
            self._state = (text, seconds_left, rough, now)
            part = text.partition(":")[0]
            if part != self._part:
                self._part, self._part_shown, self._part_began = part, False, now
            ended = 0 < total == done
            if self._is_due(now) or (ended and text != self._shown):
                self._print(now)

    def _watch(self) -> None:
        while not self._ended.wait(LASTING_S / 4):
            with self._lock:
                now = time.monotonic()
                if self._is_due(now):
                    self._print(now)

    def _is_due(self, now: float) -> bool:
        if self._state is None:
            return False
        return now - self._printed >= LINE_EVERY_S or (
            not self._part_shown and now - self._part_began >= LASTING_S
        )

    def _print(self, now: float) -> None:
        assert self._state is not None
        text, seconds_left, rough, since = self._state
        left = _time_left(seconds_left - (now - since) if seconds_left is not None else None, rough)
        self._say(f"[{now - self._began:5.0f} s] {text}{f', {left}' if left else ''}")
        self._printed, self._shown, self._part_shown = now, text, True


def _time_left(seconds: float | None, rough: bool) -> str:
    """The time left in words; nothing where it is unknown, or where it has passed and the work continues."""
    if seconds is None or seconds < 1:
        return ""
    about = "about " if rough else ""
    if rough:  # Seconds would promise what is not known.
        seconds = max(10 * round(seconds / 10), 10) if seconds < 60 else 60 * round(seconds / 60)
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{about}{hours} h {minutes:02d} min left"
    if minutes:
        return f"{about}{minutes} min left" if rough else f"{minutes} min {rest:02d} s left"
    return f"{about}{rest} s left"
