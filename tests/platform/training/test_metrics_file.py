"""The log of a run in its folder: readable lines, dropped and counted as a resumed run needs it."""

import json
import math
from pathlib import Path

import pytest

from mimic3d_platform.tracking.logger import File, Metrics, Tag
from mimic3d_platform.training import metrics_file
from mimic3d_platform.training.metrics_file import LogLine, MetricsFile


def loss(nimg: int, value: float = 0.5, stage: str = "stage1") -> LogLine:
    return LogLine(stage, nimg, Metrics({"loss": value}, nimg, 1_700_000_000_000))


def stored(folder: Path) -> list[dict]:
    segments = sorted((folder / "metrics").glob("*.jsonl"))
    return [
        json.loads(line) for segment in segments for line in segment.read_text(encoding="utf-8").splitlines()
    ]


def test_lines_are_json_that_needs_no_mlflow(tmp_path: Path) -> None:
    log = MetricsFile(str(tmp_path))
    log.append(loss(8))
    log.append(loss(16, math.nan))
    log.append(LogLine("run", 16, File("samples/000000016.png", b"pixels")))
    log.append(LogLine("run", 16, Tag("mimic3d.workers", "2")))
    log.save({"run": 1})
    time = 1_700_000_000_000
    assert stored(tmp_path) == [
        {"stage": "stage1", "nimg": 8, "time": time, "metrics": {"loss": 0.5}},
        {"stage": "stage1", "nimg": 16, "time": time, "metrics": {"loss": "nan"}},
        {"stage": "run", "nimg": 16, "file": "samples/000000016.png"},
        {"stage": "run", "nimg": 16, "tag": "mimic3d.workers", "value": "2"},
    ]
    assert (tmp_path / "samples" / "000000016.png").read_bytes() == b"pixels"
    assert json.loads((tmp_path / "metrics" / "sent.json").read_text(encoding="utf-8")) == {"run": 1}


def test_a_resumed_run_gets_what_mlflow_has_yet_to_take_and_drops_later_lines(tmp_path: Path) -> None:
    log = MetricsFile(str(tmp_path))
    picture = LogLine("run", 16, File("samples/000000016.png", b"pixels"))
    late = LogLine("run", 8, Tag("mimic3d.checkpoint", "uri"))  # Of a checkpoint that took its time.
    for line in (loss(8), loss(16, math.nan), picture, loss(24), late, loss(32)):
        log.append(line)
    log.save({"stage1": 1})
    resumed = MetricsFile(str(tmp_path))
    sent, missing = resumed.resume(16)
    assert sent == {"stage1": 1}
    [first, *others] = missing
    assert first.nimg == 16 and math.isnan(first.entry.values["loss"])
    assert others == [picture, late]
    assert [line["nimg"] for line in stored(tmp_path)] == [8, 16, 16, 8]
    resumed.append(loss(24))
    resumed.save({"stage1": 3, "run": 2})
    assert [line["nimg"] for line in stored(tmp_path)] == [8, 16, 16, 8, 24]
    assert MetricsFile(str(tmp_path)).resume(24) == ({"stage1": 3, "run": 2}, [])


def test_lines_that_mlflow_has_taken_and_that_are_dropped_count_no_longer(tmp_path: Path) -> None:
    log = MetricsFile(str(tmp_path))
    for nimg in (8, 16, 24):
        log.append(loss(nimg))
    log.save({"stage1": 3})
    for _ in range(2):  # A process that dies right after it has resumed leaves the same.
        assert MetricsFile(str(tmp_path)).resume(16) == ({"stage1": 2}, [])


def test_a_run_without_a_checkpoint_begins_its_log_anew(tmp_path: Path) -> None:
    log = MetricsFile(str(tmp_path))
    log.append(loss(8))
    log.save({"stage1": 1})
    assert MetricsFile(str(tmp_path)).resume(None) == ({}, [])
    assert stored(tmp_path) == []


def test_only_the_last_segment_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_file, "SEGMENT_BYTES", 150)  # Two lines.
    log = MetricsFile(str(tmp_path))
    for nimg in range(8, 48, 8):
        log.append(loss(nimg))
        log.save({})
    names = sorted(path.name for path in (tmp_path / "metrics").glob("*.jsonl"))
    assert names == ["000000000.jsonl", "000000002.jsonl", "000000004.jsonl"]
    first = tmp_path / "metrics" / names[0]
    before = first.stat().st_mtime_ns
    resumed = MetricsFile(str(tmp_path))
    sent, missing = resumed.resume(24)
    assert sent == {} and [line.nimg for line in missing] == [8, 16, 24]
    resumed.append(loss(32))
    resumed.save({})
    assert [line["nimg"] for line in stored(tmp_path)] == [8, 16, 24, 32]
    assert first.stat().st_mtime_ns == before


def test_a_damaged_line_costs_no_other(tmp_path: Path) -> None:
    log = MetricsFile(str(tmp_path))
    for nimg in (8, 16):
        log.append(loss(nimg))
    log.save({})
    segment = tmp_path / "metrics" / "000000000.jsonl"
    segment.write_bytes(b'{"stage": "st\xff\n' + segment.read_bytes())
    _, missing = MetricsFile(str(tmp_path)).resume(16)
    assert [line.nimg for line in missing] == [8, 16] and len(stored(tmp_path)) == 2
