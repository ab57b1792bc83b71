"""`make bench-data`: the training stream beside other loaders, on the same images, in the same run.

Each measurement is a process of its own; contestants take turns, in several rounds, and medians are shown. A
local SeaweedFS is the object storage. Writes a table and a plot: python -m benchmarks.data --help
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
from pathlib import Path
from typing import Any

from mimic3d_platform.settings import use_services

MARK = "<!-- make bench-data -->"
# Shortest first: an interrupted run has compared all contestants at some size.
SIDES = (64, 256, 512)
_SAMPLE_S = 0.2


def main() -> None:
    arguments = _arguments()
    if arguments.measure:
        return _measure(json.loads(arguments.measure))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped"))
    use_services()
    from benchmarks.contestants import BATCH, CONTESTANTS
    from benchmarks.pictures import COUNTS, make_pictures, write_all
    from mimic3d_platform import storage

    names = [name for name in CONTESTANTS if not arguments.only or name in arguments.only]
    uri = f"s3://mimic3d/bench-{uuid.uuid4().hex[:8]}"
    found: dict[str, list[dict[str, float]]] = {}
    counts: dict[int, int] = {}
    try:
        for side in arguments.sides:
            counts[side] = max(round(COUNTS[side] * arguments.share), 2 * BATCH)
            write_all(make_pictures(side, counts[side]), side, f"{uri}/{side}")
        for number in range(arguments.rounds):
            for side in arguments.sides:
                for workers in arguments.workers:
                    for name in names:
                        task = {"name": name, "uri": f"{uri}/{side}", "side": side, "workers": workers}
                        result = _run(task | {"count": counts[side], "seconds": arguments.seconds})
                        if result is None:
                            continue
                        found.setdefault(f"{side}|{workers}|{name}", []).append(result)
                        print(f"round {number + 1}: {side} {workers} {name}: {result}", flush=True)
    finally:
        storage.delete_tree(uri)
    medians = {
        key: {measure: statistics.median(run[measure] for run in runs) for measure in runs[0]}
        for key, runs in found.items()
    }
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
    parser.add_argument("--only", nargs="+", help="names of contestants")
    parser.add_argument("--docs", help="the folder whose streaming.md and plot are brought up to date")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(task: dict[str, Any]) -> dict[str, float] | None:
    """One measurement in a process of its own, with the peak memory of all its processes, in MiB.

    None if it failed, which is said; the others go on.
    """
    cache = Path(tempfile.mkdtemp(prefix="mimic3d-bench-"))
    command = [sys.executable, "-m", "benchmarks.data", "--measure", json.dumps(task | {"cache": str(cache)})]
    log = cache.with_suffix(".log")
    try:
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
            peak = _Peak(process.pid)
            said = process.communicate()[0].decode()
            memory = peak.stop()
        lines = [line for line in said.splitlines() if line.startswith("{")]
        if process.returncode or not lines:
            print(f"{task['name']} failed:\n{log.read_text()[-3000:]}", file=sys.stderr)
            return None
        return json.loads(lines[-1]) | {"memory": memory}
    finally:
        with contextlib.suppress(ProcessLookupError, UnboundLocalError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(cache, ignore_errors=True)
        log.unlink(missing_ok=True)


class _Peak:
    """Watches the memory of a process and all below it (PSS: what is shared counts once)."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._stop = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        import psutil

        while not self._stop.wait(_SAMPLE_S):
            total = 0
            try:
                root = psutil.Process(self._pid)
                for process in (root, *root.children(recursive=True)):
                    total += process.memory_full_info().pss
            except psutil.Error:
                continue
            self._peak = max(self._peak, total)

    def stop(self) -> float:
        self._stop.set()
        self._thread.join()
        return self._peak / 2**20


def _measure(task: dict[str, Any]) -> None:
    """What the process of one measurement does."""
    from benchmarks.contestants import measure

    cache = Path(task.pop("cache"))
    print(json.dumps(measure(task.pop("name"), task.pop("uri"), cache, **task)), flush=True)
    sys.stdout.flush()
    os._exit(0)  # Libraries wait long for their workers here.


def as_table(medians: dict[str, dict[str, float]], counts: dict[int, int], rounds: int) -> str:
    """Markdown: a line for each contestant at each size and number of workers."""
    from benchmarks.contestants import RAW
    from mimic3d_platform.data.stream.decode_images import pyspng

    decoder = "libspng (pyspng)" if pyspng is not None else "Pillow"
    pictures = ", ".join(f"{count} PNG images of {side}²" for side, count in counts.items())
    said = "One round" if rounds == 1 else f"Medians of {rounds} rounds"
    lines = [
        f"{said} on {os.cpu_count()} cores ({platform.machine()}), "
        f"{time.strftime('%Y-%m-%d')}; {pictures}; batches of 32, decoded by {decoder} for all. "
        "Images a second; seconds; MiB of all processes.",
        "",
        "| images | workers | | warm | cold | first batch | memory |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for key, value in medians.items():
        side, workers, name = key.split("|")
        cells = [f"{side}²", workers, name, f"{value['warm']:.0f}"]
        cells += ["–", "–"] if name == RAW else [f"{value['cold']:.0f}", f"{value['first_batch']:.2f} s"]
        lines.append(f"| {' | '.join(cells)} | {value['memory']:.0f} |")
    return "\n".join(lines)


def write_docs(folder: Path, medians: dict[str, dict[str, float]], table: str) -> None:
    """Puts the table between the marks of streaming.md, and the plot beside it."""
    page = folder / "streaming.md"
    picture = "![Images a second of each loader](bench-data.png)"
    before, _, after = page.read_text().split(MARK)
    page.write_text(f"{before}{MARK}\n\n{table}\n\n{picture}\n\n{MARK}{after}")
    _plot(medians).savefig(folder / "bench-data.png", dpi=110)


def _plot(medians: dict[str, dict[str, float]]) -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    from benchmarks.contestants import RAW

    sides = list(dict.fromkeys(key.split("|")[0] for key in medians))
    names = list(dict.fromkeys(key.split("|")[2] for key in medians))
    workers = max(key.split("|")[1] for key in medians)
    figure, axes = pyplot.subplots(1, len(sides), figsize=(4.2 * len(sides), 3.4), sharey=True, squeeze=False)
    for axis, side in zip(axes[0], sides, strict=True):
        for shift, measure, colour in ((-0.2, "warm", "#c44e2b"), (0.2, "cold", "#4a7ba6")):
            shown = [name for name in names if measure == "warm" or name != RAW]
            # One that failed at a size has no bar there.
            shown = [name for name in shown if f"{side}|{workers}|{name}" in medians]
            values = [medians[f"{side}|{workers}|{name}"][measure] for name in shown]
            bars = axis.barh(
                [names.index(name) + shift for name in shown], values, 0.4, color=colour, label=measure
            )
            axis.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
        axis.set_title(f"{side}², {workers} workers", fontsize=10)
        axis.set_xlabel("images a second")
        axis.set_xscale("log")
        axis.set_xlim(right=axis.get_xlim()[1] * 3)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    axes[0, -1].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
