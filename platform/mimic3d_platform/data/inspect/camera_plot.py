"""A plot of the cameras of a data set, which shows missing directions before a training is started."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from mimic3d_platform.data.format.camera_labels import yaw_pitch_radius

_INK = "#2b5d8a"


def camera_plot(labels: np.ndarray, title: str) -> bytes:
    """A PNG file: histograms of directions (yaw, pitch), of yaw alone, of radii and of focal lengths.

    Args:
        labels: (n, 25).
    """
    yaw, pitch, radius = yaw_pitch_radius(labels)
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    figure.suptitle(f"{title}: {len(labels)} cameras")
    grid = figure.add_gridspec(2, 3, width_ratios=(2.2, 1.3, 1))
    directions = figure.add_subplot(grid[:, 0])
    spread = directions.hist2d(
        np.degrees(yaw),
        np.degrees(pitch),
        bins=(72, 36) if len(labels) >= 5000 else (36, 18),
        range=((-180, 180), (-90, 90)),
        cmap="viridis",
        cmin=1,
    )
    figure.colorbar(spread[3], ax=directions, label="images", orientation="horizontal", shrink=0.6)
    directions.set(xlabel="yaw, °  (0 is +z, 90 is +x)", ylabel="pitch, °", title="directions")
    directions.set_xticks(range(-180, 181, 60))
    directions.set_yticks(range(-90, 91, 30))
    directions.set_facecolor("#f2f2f2")

    rose = figure.add_subplot(grid[:, 1], projection="polar")
    assert isinstance(rose, PolarAxes)
    counts, edges = np.histogram(yaw, bins=36, range=(-np.pi, np.pi))
    rose.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=_INK, edgecolor="white")
    rose.set_theta_zero_location("S")
    rose.set_title("yaw, seen from above, front below")

    for row, (values, name) in enumerate(
        ((radius, "radius, world units"), (labels[:, 16], "focal length, image widths"))
    ):
        axes = figure.add_subplot(grid[row, 2])
        middle = float(np.median(values))
        # Equal values are drawn as one bar, not as a histogram of their rounding errors.
        reach = max(float(np.abs(values - middle).max()), 0.05 * abs(middle), 1e-6)
        axes.hist(values, bins=41, range=(middle - reach, middle + reach), color=_INK)
        axes.set(xlabel=name, ylabel="images")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=100)
    return sink.getvalue()
