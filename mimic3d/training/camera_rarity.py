"""The rarity of cameras' viewing directions in a data set, which camera balancing uses.

`mimic3d data ingest --balance` stores these numbers in the data set's column `weight`; a training with
`data.camera_balance` computes them where the data set has no such column (`balance.CameraBalance`).
"""

from __future__ import annotations

import numpy as np

# Bins of equal area. An odd number of rows, and columns that are centred on yaw 0: no edge lies on the
# directions that many sets share, level and straight ahead, where rounding errors would split a bin in two.
YAW_BINS, PITCH_BINS = 36, 13
# One camera far from all others must not dominate a training.
MOST_RARITY = 10.0


def camera_rarity(labels: np.ndarray) -> np.ndarray:
    """The rarity of each camera's viewing direction: the inverse of the number of cameras in its bin.

    The sphere of viewing directions (the cameras' optical axes) is divided into 36 × 13 bins of equal area:
    equal steps of yaw, and of the sine of pitch. A camera's rarity is the mean number of cameras per bin in
    use over the number in its own bin, at most 10, scaled to a mean of 1. Cameras that are drawn in
    proportion to it cover all directions in use equally, as far as the limit allows.

    Args:
        labels: (n, 25), camera labels; they are rounded to float32, as data sets store them.
    Returns:
        (n,) float64, mean 1; all 1 where every bin in use holds equally many cameras.
    """
    axis = np.asarray(labels, dtype=np.float32).astype(np.float64)[:, [2, 6, 10]]  # third column of the pose
    yaw = np.arctan2(axis[:, 0], axis[:, 2])
    height = axis[:, 1] / np.maximum(np.linalg.norm(axis, axis=1), 1e-12)
    # Of look-at cameras in front of the object, the axis points to -z: yaw π, the middle of bin 18.
    column = np.floor(yaw / (2 * np.pi) * YAW_BINS + 0.5).astype(int) % YAW_BINS
    row = np.minimum(((height + 1) / 2 * PITCH_BINS).astype(int), PITCH_BINS - 1)
    bins = row * YAW_BINS + column
    counts = np.bincount(bins, minlength=YAW_BINS * PITCH_BINS)
    rarity = np.minimum(len(bins) / (np.count_nonzero(counts) * counts[bins]), MOST_RARITY)
    return rarity / rarity.mean()
