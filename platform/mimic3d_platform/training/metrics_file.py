"""The lines of a run's log in its folder: readable without MLflow, and the source of what MLflow has missed.

    <run>/metrics/000000000.jsonl   lines; each segment is named after the number of lines before it
    <run>/metrics/sent.json         how many lines MLflow has taken, by stage
    <run>/samples/000000400.png     a file that a line names

A line is a JSON object with `stage` (the MLflow run that it belongs to: "run", "stage1" or "stage2"), `nimg`,
and either `metrics`, values by name, with `time` in milliseconds since 1970; or `tag` and `value`; or `file`.
`step` says which image metrics belong to that were measured beside the training and logged later, at `nimg`.
NaN and infinities are strings. Object storage has no append: saving rewrites the last segment.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mimic3d_platform import storage
from mimic3d_platform.tracking.logger import Entry, File, Metrics, Tag

FOLDER = "metrics"
SENT = "sent.json"
# A segment that has grown to this size is not rewritten any more.
SEGMENT_BYTES = 1_000_000


@dataclass(frozen=True)
class LogLine:
    """An entry of the log, with the stage and the image that it belongs to."""

    stage: str
    nimg: int
    entry: Entry

    def to_json(self) -> str:
        """The line as it is stored, without the content of a file."""
        values: dict[str, object] = {"stage": self.stage, "nimg": self.nimg}
        if isinstance(self.entry, Metrics):
            values["time"] = self.entry.time_ms
            if self.entry.step != self.nimg:
                values["step"] = self.entry.step
            values["metrics"] = {
                name: value if math.isfinite(value) else str(value)
                for name, value in self.entry.values.items()
            }
        elif isinstance(self.entry, Tag):
            values |= {"tag": self.entry.key, "value": self.entry.value}
        else:
            values["file"] = self.entry.name
        return json.dumps(values)


class MetricsFile:
    """The log lines of one run; used by rank 0, from several threads.

    Args:
        run_uri: the run's folder.
    """

    def __init__(self, run_uri: str) -> None:
        self._run_uri = run_uri
        self._uri = storage.join(run_uri, FOLDER)
        self._first = 0
        """Lines in the segments before the last."""
        self._lines: list[str] = []
        """Of the last segment."""
        self._files: dict[str, bytes] = {}
        """Not stored yet."""
        self._appending, self._saving = threading.Lock(), threading.Lock()

    def append(self, line: LogLine) -> None:
        """Adds a line; it is stored by the next `save`."""
        with self._appending:
            self._lines.append(line.to_json())
            if isinstance(line.entry, File):
                self._files[line.entry.name] = line.entry.content

    def save(self, sent: Mapping[str, int]) -> None:
        """Stores all lines and files that were added.

        Args:
            sent: how many lines MLflow has taken, by stage.
        Raises:
            UserError: storage does not answer; the same may be tried again.
        """
        with self._saving:
            with self._appending:
                files, lines, first = dict(self._files), list(self._lines), self._first
            for name, file in files.items():
                storage.write_bytes(storage.join(self._run_uri, name), file)
            content = _joined(lines)
            if content:
                storage.write_bytes(self._segment(first), content)
            storage.write_bytes(storage.join(self._uri, SENT), json.dumps(dict(sent)).encode())
            with self._appending:
                self._files = {name: file for name, file in self._files.items() if name not in files}
                if len(content) >= SEGMENT_BYTES:
                    self._first += len(lines)
                    del self._lines[: len(lines)]

    def resume(self, nimg: int | None) -> tuple[dict[str, int], list[LogLine]]:
        """Continues the log of a run that resumes at `nimg`, or begins it anew where that is None.

        Lines of later images are dropped, since the resumed run logs them again.

        Returns:
            how many of the lines MLflow has taken, by stage, and the lines that it has yet to take.
        Raises:
            UserError: storage does not answer; the same may be tried again.
        """
        if nimg is None:
            storage.delete_tree(self._uri)
            return {}, []
        segments = storage.list_files(self._uri, suffix=".jsonl")
        stored = b"".join(storage.read_bytes(segment) for segment in segments)
        texts = stored.decode(errors="replace").splitlines()
        lines = [_parse(text) for text in texts]
        kept = [line is not None and line.nimg <= nimg for line in lines]
        sent_uri = storage.join(self._uri, SENT)
        sent = json.loads(storage.read_bytes(sent_uri)) if storage.exists(sent_uri) else {}
        seen: Counter[str] = Counter()
        taken: Counter[str] = Counter()
        missing: list[LogLine] = []
        for line, keep in zip(lines, kept, strict=True):
            if line is None:
                continue
            seen[line.stage] += 1
            if keep and seen[line.stage] <= sent.get(line.stage, 0):
                taken[line.stage] += 1
            elif keep:
                missing += self._with_content(line)
        unchanged = kept.index(False) if False in kept else len(kept)
        self._first = max((first for first in map(_first_line, segments) if first <= unchanged), default=0)
        self._lines = [text for text, keep in zip(texts, kept, strict=True) if keep][self._first :]
        # First the count: should this process die now, too low a count only sends lines that are known.
        storage.write_bytes(sent_uri, json.dumps(taken).encode())
        storage.write_bytes(self._segment(self._first), _joined(self._lines))
        for segment in segments:
            if _first_line(segment) > self._first:
                storage.delete_tree(segment)
        return dict(taken), missing

    def _segment(self, first: int) -> str:
        return storage.join(self._uri, f"{first:09d}.jsonl")

    def _with_content(self, line: LogLine) -> list[LogLine]:
        """A line with the content of the file that it names; none if the file is gone."""
        if not isinstance(line.entry, File):
            return [line]
        uri = storage.join(self._run_uri, line.entry.name)
        if not storage.exists(uri):
            return []
        return [replace(line, entry=File(line.entry.name, storage.read_bytes(uri)))]


def _parse(text: str) -> LogLine | None:
    """The line that a JSON object describes; None for a damaged one."""
    try:
        values = json.loads(text)
        stage, nimg = str(values["stage"]), int(values["nimg"])
        if "metrics" in values:
            metrics = {name: float(value) for name, value in values["metrics"].items()}
            return LogLine(stage, nimg, Metrics(metrics, int(values.get("step", nimg)), values["time"]))
        if "tag" in values:
            return LogLine(stage, nimg, Tag(values["tag"], values["value"]))
        return LogLine(stage, nimg, File(values["file"], b""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _first_line(segment: str) -> int:
    """The number of lines before those of a segment."""
    return int(segment.rsplit("/", 1)[-1].removesuffix(".jsonl"))


def _joined(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
