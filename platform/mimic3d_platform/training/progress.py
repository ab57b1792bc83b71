"""Progress reports of a run's workers, and their display in a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mimic3d.config import Config
from mimic3d_platform.console import Console


@dataclass(frozen=True)
class ProgressReport:
    """A run at one moment."""

    phase: str
    """In a few words, such as "stage 1" or "measuring"."""
    nimg: int
    total_nimg: int
    images_per_second: float = 0.0
    seconds_left: float | None = None
    seconds_left_is_rough: bool = False
    """Whether `seconds_left` rests on a guess: the speed of stage 2 before it begins, or of measurements."""
    train_seconds: float = 0.0
    data_wait_share: float = 0.0
    """The share of the last steps' time that was spent waiting for data."""
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """All measurements so far, by images consumed."""
    url: str | None = None
    """The run's page in MLflow; only in the first report."""


# Stage 2 renders a patch with every image, and takes half as much again as stage 1 (the paper's cost).
STAGE2_SLOWDOWN = 1.5
# The weight of the newest speed in the average: a busy machine's speed swings.
_NEWEST = 0.3


class TimeEstimate:
    """The time to a run's end: its steps at each stage's own speed, its measurements and its sample grids.

    Args:
        waits_for_metrics: whether the workers measure during the stages too, not only at their ends.
    """

    def __init__(self, config: Config, *, waits_for_metrics: bool = True) -> None:
        self._config = config
        self._metric_kimg = config.output.metric_kimg if waits_for_metrics else None
        self._seconds_per_image: dict[int, float] = {}
        self._part_seconds: dict[str, float] = {}

    def stepped(self, stage: int, images_per_second: float) -> None:
        """Takes in the newest speed of a stage."""
        newest = 1 / images_per_second
        known = self._seconds_per_image.get(stage, newest)
        self._seconds_per_image[stage] = known + _NEWEST * (newest - known)

    def took(self, part: str, seconds: float) -> None:
        """Takes in how long a part between two steps took: "measuring" or "samples"."""
        self._part_seconds[part] = seconds

    def left(self, nimg: int, *, parts_done: bool = True) -> tuple[float | None, bool]:
        """Seconds from `nimg` images to the end of the run, and whether they rest on a guess.

        Args:
            parts_done: whether the parts that belong to `nimg` itself are behind.
        Returns:
            (None, False) where no speed was measured yet.
        """
        if not self._seconds_per_image:
            return None, False
        config = self._config
        ends = {1: config.stage1_nimg, 2: config.total_nimg}
        seconds, rough, begin = 0.0, False, nimg
        for stage, end in ends.items():
            if end > begin:
                each = self._seconds_per_image.get(stage)
                rough |= each is None
                seconds += (end - begin) * (self._guess(stage) if each is None else each)
                begin = end
        for part, interval in (("measuring", self._metric_kimg), ("samples", config.output.sample_kimg)):
            times = self._times(nimg if parts_done else nimg - 1, interval)
            rough |= times > 0 and part not in self._part_seconds
            seconds += times * self._part_seconds.get(part, 0.0)
        return seconds, rough

    def _guess(self, stage: int) -> float:
        known = self._seconds_per_image
        return known[1] * STAGE2_SLOWDOWN if stage == 2 else known[2] / STAGE2_SLOWDOWN

    def _times(self, nimg: int, interval_kimg: float | None) -> int:
        """How often a part with this interval, which is due at the stages' ends too, follows after `nimg`."""
        config = self._config
        due = {end for end in (config.stage1_nimg, config.total_nimg) if end > max(nimg, 0)}
        if interval_kimg is not None:
            step = round(interval_kimg * 1000)
            due |= set(range((nimg // step + 1) * step, config.total_nimg + 1, step))
        return len(due)


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Callable[[ProgressReport], None]]:
    """A bar over a run's images; the block gets a function that shows a report."""
    with console.bar() as update:

        def show(report: ProgressReport) -> None:
            if report.url:
                console.say(f"MLflow: {report.url}")
            line = f"{report.phase}: {report.nimg} of {report.total_nimg} images"
            if report.images_per_second:
                line += f", {report.images_per_second:.0f} images/s"
                line += f", {report.data_wait_share:.1%} waiting for data"
            update(line, report.nimg, report.total_nimg, report.seconds_left, report.seconds_left_is_rough)

        update("checking the data and the services", 0, 0)
        yield show
