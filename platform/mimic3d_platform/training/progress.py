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
    seconds_left_is_minimum: bool = False
    """Whether `seconds_left` leaves out how much slower stage 2 is, which is unknown before it begins."""
    train_seconds: float = 0.0
    data_wait_share: float = 0.0
    """The share of the last steps' time that was spent waiting for data."""
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """All measurements so far, by images consumed."""
    url: str | None = None
    """The run's page in MLflow; only in the first report."""


def time_left(config: Config, nimg: int, stage: int, images_per_second: float) -> tuple[float | None, bool]:
    """Seconds to the end of the run at the present stage's speed, and whether they are only a minimum.

    Stage 2 renders a patch with every image and is slower, by how much is unknown before it has begun.

    Args:
        stage: the stage in which `images_per_second` was measured; 0 where it was not measured yet.
    Returns:
        (None, False) where no speed is known for the present stage.
    """
    if not images_per_second or not stage or (stage == 1 and nimg > config.stage1_nimg):
        return None, False
    stage2_follows = stage == 1 and config.total_nimg > config.stage1_nimg
    return (config.total_nimg - nimg) / images_per_second, stage2_follows


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
            left, is_minimum = report.seconds_left, report.seconds_left_is_minimum
            update(line, report.nimg, report.total_nimg, left, is_minimum)

        update("checking the data and the services", 0, 1, None)
        yield show
