"""End diastole and end systole from the frames themselves.

Axes: T frames, H W the two axes of a plane.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg_core.errors import MedsegError

CORE = 0.5  # of the largest distance to the wall: farther inside, blood stays through the cycle
SMOOTH = (0.25, 0.5, 0.25)  # over neighbouring frames of the cycle, against noise


def find_phases(frames: np.ndarray, myo: np.ndarray | None = None) -> tuple[int, int]:
    """The frames of end diastole and end systole: (ed, es).

    With a mask they are where `blood_area` is largest and smallest. Without one, or where it shows no blood (a mask
    without a hole, dark blood), frame 0 counts as ED, as cine is triggered at the R wave, and the frame that differs
    most from it as ES.

    Args:
        frames: (T, H, W) bright-blood cine, one cycle.
        myo: (H, W) bool, the myocardium at ED.

    Raises:
        MedsegError: a single frame, or frames that are all equal.
    """
    if len(frames) < 2:
        raise MedsegError(f"a cine of {len(frames)} frame has no end systole; give one with the frames of a cycle")
    area = None if myo is None else blood_area(frames, myo)
    if area is not None and np.ptp(area) > 0:
        return phases_of(area)
    first = frames[0].astype(np.float64)
    moved = np.array([np.abs(frame - first).mean() for frame in frames])
    if not moved.any():
        raise MedsegError(f"all {len(frames)} frames of the cine are equal, so nothing moves; give frames of a cycle")
    return 0, int(moved.argmax())


def find_shared_phases(cines: Sequence[np.ndarray], myos: Sequence[np.ndarray]) -> tuple[int, int]:
    """ED and ES of a patient, one pair for all slices, as most readers choose them: by the blood of all slices.

    Args:
        cines: (T, H, W) each, T alike.
        myos: (H, W) bool each.

    Raises:
        MedsegError: other numbers of frames; or no slice shows blood, and `find_phases` refuses the first.
    """
    lengths = {len(frames) for frames in cines}
    if len(lengths) != 1:
        raise MedsegError(f"slices have {sorted(lengths)} frames, so they share no ED; find it slice by slice")
    area = np.sum([blood_area(frames, myo) for frames, myo in zip(cines, myos, strict=True)], axis=0)
    return phases_of(area) if np.ptp(area) > 0 else find_phases(cines[0])


def phases_of(area: np.ndarray) -> tuple[int, int]:
    """Where a curve over the cycle, (T,), is largest and smallest after smoothing: (ed, es)."""
    smooth = ndimage.convolve1d(np.asarray(area, dtype=np.float64), SMOOTH, mode="wrap")
    return int(smooth.argmax()), int(smooth.argmin())


def blood_area(frames: np.ndarray, myo: np.ndarray) -> np.ndarray:
    """Pixels of blood within the outer outline of the myocardium in each frame: (T,).

    Blood is what is brighter than midway between wall and pool, by their medians over the cycle, and connected to the
    middle of the pool. All 0 where the mask encloses no pool, or a pool that is no brighter than the wall.

    Args:
        frames: (T, H, W).
        myo: (H, W) bool, drawn in one of the frames, mostly ED.
    """
    whole = ndimage.binary_fill_holes(myo)
    pool = whole & ~myo
    area = np.zeros(len(frames))
    if not pool.any():
        return area
    depth = ndimage.distance_transform_edt(pool)
    core = depth > CORE * depth.max()
    wall_level, pool_level = np.median(frames[:, myo]), np.median(frames[:, core])
    if pool_level <= wall_level:
        return area
    for t, frame in enumerate(frames):
        parts, _ = ndimage.label(whole & (frame > (wall_level + pool_level) / 2))
        inside = np.unique(parts[core])
        area[t] = np.isin(parts, inside[inside > 0]).sum()
    return area
