"""Labels that were smoothed: how widely, and what that took given back.

A Gaussian filter and a majority leave a mask only if something, between nothing and all in each voxel, becomes it by
them. That is sought by Van Cittert's iteration (1931) with bounds (Jansson, 1970), and has the tips and edges that the
filter took. For labels with rough surfaces, as people draw them, nothing is found. Labels of networks and resampled
ones are smooth in themselves: they would be sharpened too, so this is for those who know what was done to a label.

Axes: X Y Z voxels.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from medseg_near.shapes import box_of

WIDTHS = (
    1.0,
    1.15,
    1.3,
    1.5,
    1.7,
    2.0,
    2.3,
    2.7,
    3.1,
    3.6,
)  # of the filter, in voxels; narrower ones fit all
UNLIKE = 0.003  # share of the voxels that may still differ where a width fits
TRIES, UPDATES = 20, 60
SOFT = 0.1  # of the majority, so that what is nearly outvoted counts
TRUNCATE = 3.0  # standard deviations that the filter reaches


def sharpened(label: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, float]:
    """What a label may have been before it was smoothed, and the width of the filter in voxels.

    Args:
        label: (X, Y, Z) bool.
        spacing_mm: along X, Y, Z; the filter is as wide along each in mm.

    Returns:
        The very input and 0 where nothing says that it was smoothed.
    """
    tight = box_of(label)
    if tight is None:
        return label, 0.0
    spacing = np.asarray(spacing_mm, float)
    voxels = float(spacing.prod() ** (1 / 3)) / spacing
    room = np.ceil(TRUNCATE * WIDTHS[-1] * voxels).astype(int)
    box = tuple(slice(max(s.start - n, 0), s.stop + n) for s, n in zip(tight, room, strict=True))
    seen = label[box].astype(np.float32)
    width = 0.0
    for wider in WIDTHS:
        if not _fits(seen, wider * voxels):
            break
        width = wider
    if not width:
        return label, 0.0
    before = seen.copy()
    for _ in range(UPDATES):
        _update(before, seen - expit((_smooth(before, width * voxels) - 0.5) / SOFT), width * voxels)
    sharp = label.copy(order="K")
    sharp[box] = before > 0.5
    return sharp, width


def _fits(seen: np.ndarray, std: np.ndarray) -> bool:
    """Whether something becomes what is seen, by a filter of this width."""
    before, most = seen.copy(), UNLIKE * float(seen.sum())
    for _ in range(TRIES):
        missing = seen - (_smooth(before, std) > 0.5)
        if np.count_nonzero(missing) <= most:
            return True
        _update(before, missing, std)
    return False


def _update(before: np.ndarray, missing: np.ndarray, std: np.ndarray) -> None:
    before += _smooth(missing, std)
    np.clip(before, 0, 1, out=before)


def _smooth(values: np.ndarray, std: np.ndarray) -> np.ndarray:
    return gaussian_filter(values, std, mode="nearest", truncate=TRUNCATE)
