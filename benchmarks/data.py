"""`make bench-data`: the training stream compared with other data loaders, on the same images in one run.

Each measurement is a process of its own. The loaders take turns, in several rounds, and the medians are
printed. The object storage is the local SeaweedFS. With `--docs`, docs/streaming.md gets the table and the
plot. Options: python -m benchmarks.data --help
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.figure
import psutil

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import use_services

MARK = "<!-- make bench-data -->"
# Smallest first: an interrupted run has compared all loaders at some size.
SIDES = (64, 256, 512)
_MEMORY_INTERVAL_S = 0.2
# Large images are few per second: a warm measurement takes at least this many batches.
_LEAST_BATCHES = 12


@dataclass(frozen=True)
class Case:
    """A measurement: a loader, a size of images in pixels and a number of worker processes."""

    side: int
    workers: int
    loader: str


@dataclass(frozen=True)
class Task:
    """A measurement, as it is handed to its process.

    Attributes:
        count: number of images of the data set.
        seconds: of the warm measurement.
        cache: an empty local folder.
    """

    case: Case
    uri: str
    count: int
    seconds: float
    cache: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        content = json.loads(text)
        return cls(**{**content, "case": Case(**content["case"])})


@dataclass(frozen=True)
class Result:
    """The figures of a measurement.

    Attributes:
        warm: images per second, from what the loader keeps locally, after an epoch of that.
        cold: images per second of the first epoch, from object storage; 0 of raw decoding.
        first_batch: seconds; 0 of raw decoding.
        memory: the peak of all processes together, MiB.
    """

    warm: float
    cold: float = 0.0
    first_batch: float = 0.0
    memory: float = 0.0

    @classmethod
    def median(cls, results: Sequence[Result]) -> Result:
        names = ("warm", "cold", "first_batch", "memory")
        return cls(**{name: statistics.median(getattr(each, name) for each in results) for name in names})


def main() -> None:
    arguments = _arguments()
    if arguments.measure:
        return _print_result(Task.from_json(arguments.measure))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))
    use_services()
    from benchmarks.data_loaders import BATCH, EXPERIMENTS, LOADERS
    from benchmarks.data_sets import COUNTS, make_images, write_formats

    if unknown := set(arguments.only or ()) - LOADERS.keys() - EXPERIMENTS.keys():
        sys.exit(f"error: no loader {', '.join(sorted(unknown))}: {', '.join((*LOADERS, *EXPERIMENTS))}")
    known = {**LOADERS, **EXPERIMENTS}
    names = [name for name in known if name in (arguments.only or LOADERS)]
    formats = {known[name].format for name in names}
    uri = f"s3://mimic3d/bench-{uuid.uuid4().hex[:8]}"
    found: dict[Case, list[Result]] = {}
    counts: dict[int, int] = {}
    try:
        storage.exists(uri)
    except UserError as error:
        sys.exit(f"error: {error}")
    try:
        for side in arguments.sides:
            counts[side] = max(round(COUNTS[side] * arguments.share), 2 * BATCH)
            write_formats(make_images(side, counts[side]), side, f"{uri}/{side}", formats)
        for number in range(arguments.rounds):
            cases = [
                Case(side, workers, name)
                for side in arguments.sides
                for workers in arguments.workers
                for name in names
            ]
            for case in cases:
                result = _measure_in_process(case, f"{uri}/{case.side}", counts[case.side], arguments.seconds)
                if result is not None:
                    found.setdefault(case, []).append(result)
                    print(f"round {number + 1}: {case}: {result}", flush=True)
    finally:
        storage.delete_tree(uri)
    medians = {case: Result.median(results) for case, results in found.items()}
    table = as_table(medians, counts, arguments.rounds)
    print(table)
    if arguments.docs:
        write_docs(Path(arguments.docs), medians, table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each warm measurement")
    parser.add_argument("--share", type=float, default=1.0, help="of the images")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--only", nargs="+", help="names of loaders, those of the experiments too")
    parser.add_argument("--docs", help="the folder of the streaming.md and the plot to update")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure_in_process(case: Case, uri: str, count: int, seconds: float) -> Result | None:
    """Runs one measurement in a new process; prints the log and returns None if it fails."""
    cache = Path(tempfile.mkdtemp(prefix="mimic3d-bench-"))
    task = Task(case, uri, count, seconds, str(cache))
    command = [sys.executable, "-m", "benchmarks.data", "--measure", task.to_json()]
    log = cache.with_suffix(".log")
    try:
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
            peak = _PeakMemory(process.pid)
            output = process.communicate()[0].decode()
            memory = peak.stop()
        lines = [line for line in output.splitlines() if line.startswith("{")]
        if process.returncode or not lines:
            print(f"{case.loader} failed:\n{log.read_text(encoding='utf-8')[-3000:]}", file=sys.stderr)
            return None
        return Result(**{**json.loads(lines[-1]), "memory": memory})
    finally:
        with contextlib.suppress(ProcessLookupError, UnboundLocalError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(cache, ignore_errors=True)
        log.unlink(missing_ok=True)


class _PeakMemory:
    """Watches the memory of a process and its descendants (PSS: shared pages count once)."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._stop = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(_MEMORY_INTERVAL_S):
            total = 0
            try:
                root = psutil.Process(self._pid)
                for process in (root, *root.children(recursive=True)):
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue
            self._peak = max(self._peak, total)

    def stop(self) -> float:
        """The peak, in MiB."""
        self._stop.set()
        self._thread.join()
        return self._peak / 2**20


def _print_result(task: Task) -> None:
    """The main function of a measurement's process."""
    print(json.dumps(asdict(measure(task))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # Some libraries wait long for their workers here.


def measure(task: Task) -> Result:
    """Measures a loader: an epoch from object storage, one from what it keeps, then `seconds` more of those.

    The loader's construction counts as cold; importing libraries does not count.
    """
    import torch

    from benchmarks.data_loaders import EXPERIMENTS, LOADERS, RAW_DECODING, Source, ray_data

    torch.set_num_threads(1)
    loader = {**LOADERS, **EXPERIMENTS}[task.case.loader]
    for module in loader.modules:
        __import__(module)
    source, workers = Source(task.uri, Path(task.cache), task.case.side), task.case.workers
    storage.exists(task.uri)  # Connecting to object storage is not to be measured.
    if loader.batches is ray_data:
        next(ray_data(source, workers))  # Starting Ray is not to be measured.
    began = time.perf_counter()
    batches = loader.batches(source, workers)
    seen = len(next(batches)[0])
    first_batch = cold = 0.0
    if task.case.loader != RAW_DECODING:
        first_batch = time.perf_counter() - began
        while seen < task.count:
            seen += len(next(batches)[0])
        cold = seen / (time.perf_counter() - began)
        while seen < 2 * task.count:
            seen += len(next(batches)[0])
    seen, many, began = 0, 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < task.seconds or many < _LEAST_BATCHES:
        seen, many = seen + len(next(batches)[0]), many + 1
    if hasattr(batches, "close"):
        batches.close()
    return Result(warm=seen / passed, cold=cold, first_batch=first_batch)


def as_table(medians: Mapping[Case, Result], counts: Mapping[int, int], rounds: int) -> str:
    """Markdown: a line for each loader at each size and number of workers."""
    from benchmarks.data_loaders import RAW_DECODING
    from mimic3d_platform.data.stream.decode_images import pyspng

    decoder = "libspng (pyspng)" if pyspng is not None else "Pillow"
    images = ", ".join(f"{count} PNG images of {side}²" for side, count in counts.items())
    which = "One round" if rounds == 1 else f"Medians of {rounds} rounds"
    lines = [
        f"{which} on {os.cpu_count()} cores ({platform.machine()}), "
        f"{time.strftime('%Y-%m-%d')}; {images}; batches of 32, decoded by {decoder} for all. "
        "Images per second; seconds; MiB of all processes.",
        "",
        "| images | workers | | warm | cold | first batch | memory |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for case, result in medians.items():
        cells = [f"{case.side}²", str(case.workers), case.loader, f"{result.warm:.0f}"]
        if case.loader == RAW_DECODING:
            cells += ["–", "–"]
        else:
            cells += [f"{result.cold:.0f}", f"{result.first_batch:.2f} s"]
        lines.append(f"| {' | '.join(cells)} | {result.memory:.0f} |")
    return "\n".join(lines)


def write_docs(folder: Path, medians: Mapping[Case, Result], table: str) -> None:
    """Writes the table between the marks of streaming.md, and the plot beside it."""
    page = folder / "streaming.md"
    plot = "![Images per second of each loader](bench-data.png)"
    before, _, after = page.read_text(encoding="utf-8").split(MARK)
    page.write_text(f"{before}{MARK}\n\n{table}\n\n{plot}\n\n{MARK}{after}", encoding="utf-8")
    _plot(medians).savefig(folder / "bench-data.png", dpi=110)


def _plot(medians: Mapping[Case, Result]) -> matplotlib.figure.Figure:
    from benchmarks.data_loaders import RAW_DECODING

    sides = list(dict.fromkeys(case.side for case in medians))
    names = list(dict.fromkeys(case.loader for case in medians))
    workers = max(case.workers for case in medians)
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(sides), 3.4), layout="tight")
    axes = figure.subplots(1, len(sides), sharey=True, squeeze=False)
    for axis, side in zip(axes[0], sides, strict=True):
        for shift, what, colour in ((-0.2, "warm", "#c44e2b"), (0.2, "cold", "#4a7ba6")):
            shown = [name for name in names if what == "warm" or name != RAW_DECODING]
            # A loader that failed at a size has no bar there.
            shown = [name for name in shown if Case(side, workers, name) in medians]
            values = [getattr(medians[Case(side, workers, name)], what) for name in shown]
            places = [names.index(name) + shift for name in shown]
            bars = axis.barh(places, values, 0.4, color=colour, label=what)
            axis.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
        axis.set_title(f"{side}², {workers} workers", fontsize=10)
        axis.set_xlabel("images per second")
        axis.set_xscale("log")
        axis.set_xlim(right=axis.get_xlim()[1] * 3)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    axes[0, -1].legend(loc="lower right", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
