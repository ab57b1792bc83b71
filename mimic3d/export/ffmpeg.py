"""The encoder: ffmpeg as a child process that gets no more of this process's environment than it needs.

imageio-ffmpeg brings the program; its own functions would hand it the whole environment, credentials of
object storage among it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# Of these alone; everything else, such as AWS_SECRET_ACCESS_KEY, stays here.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SYSTEMROOT")
_CLOSE_S = 60.0


def find_ffmpeg() -> str:
    """The path of ffmpeg: `IMAGEIO_FFMPEG_EXE`, else the one of imageio-ffmpeg, else one in PATH.

    Raises:
        OSError: there is none.
    """
    if named := os.environ.get("IMAGEIO_FFMPEG_EXE"):
        return named
    import imageio_ffmpeg

    binaries = Path(imageio_ffmpeg.__file__).parent / "binaries"
    for path in [*sorted(map(str, binaries.glob("ffmpeg-*"))), shutil.which("ffmpeg")]:
        if path and os.access(path, os.X_OK):
            return path
    raise OSError("there is no ffmpeg: install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to the program")


def run_ffmpeg(*arguments: str, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs ffmpeg to its end, with its output as text."""
    return subprocess.run(
        [find_ffmpeg(), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        env=_environment(),
        timeout=timeout_s,
    )


def encode_h264(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: int) -> int:
    """Encodes frames as H.264 (yuv420p) in mp4; returns their number.

    Args:
        frames: (H, W, 3) uint8, contiguous.
        size: W and H, both even.
    Raises:
        OSError: the encoder ended early, for example for want of space.
    """
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(fps), "-i", "-")
    coding = ("-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16", "-movflags", "+faststart")
    process = subprocess.Popen(
        [find_ffmpeg(), "-y", "-v", "quiet", *source, *coding, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        process_group=0,  # Ctrl-C ends this process, which then ends the encoder.
    )
    assert process.stdin is not None
    count = 0
    try:
        for frame in frames:
            process.stdin.write(frame.data)
            count += 1
        process.stdin.close()
        process.wait(_CLOSE_S)
    except BrokenPipeError:
        pass  # The exit status says it too.
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    if process.returncode:
        raise OSError("the encoder did not write all frames; the disk may be full")
    return count


def count_frames(path: Path) -> int:
    """The number of frames of a video that can be decoded; 0 where it cannot be read."""
    decoded = run_ffmpeg("-i", str(path), "-map", "0:v:0", "-vf", "null", "-f", "null", "-")
    counts = re.findall(r"frame= *(\d+)", decoded.stderr)
    return int(counts[-1]) if counts and decoded.returncode == 0 else 0


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}
