"""The encoder writes what it is given, reports failures, and sees no credentials."""

import os
from pathlib import Path

import numpy as np
import pytest

from mimic3d.export import ffmpeg
from mimic3d.export.video import write_video

FRAMES = [np.full((16, 16, 3), 30 * index, np.uint8) for index in range(5)]
SECRETS = {"AWS_SECRET_ACCESS_KEY": "hunter2", "MLFLOW_TRACKING_PASSWORD": "hunter2", "ANYTHING": "hunter2"}


def test_all_frames_are_encoded_and_counted(tmp_path: Path) -> None:
    assert ffmpeg.encode_h264(tmp_path / "v.mp4", FRAMES, (16, 16), 24) == 5
    assert ffmpeg.count_frames(tmp_path / "v.mp4") == 5
    (tmp_path / "v.mp4").write_bytes((tmp_path / "v.mp4").read_bytes()[:200])
    assert ffmpeg.count_frames(tmp_path / "v.mp4") == 0


def test_no_child_sees_more_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = ffmpeg.find_ffmpeg(), tmp_path / "seen"
    spy = tmp_path / "spy"
    spy.write_text(f'#!/bin/sh\nenv >> "{seen}"\nexec "{real}" "$@"\n', encoding="utf-8")
    spy.chmod(0o700)
    for name, value in (SECRETS | {"IMAGEIO_FFMPEG_EXE": str(spy)}).items():
        monkeypatch.setenv(name, value)
    write_video(tmp_path / "v.mp4", FRAMES)
    found = seen.read_text(encoding="utf-8")
    assert found.count(f"PATH={os.environ['PATH']}") == 2  # The encoder, and the count of its frames.
    assert "hunter2" not in found


def test_an_encoder_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    with pytest.raises(OSError, match="did not write all frames"):
        write_video(tmp_path / "v.mp4", FRAMES * 50)
    assert not list(tmp_path.iterdir())
