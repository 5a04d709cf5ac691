"""Single slices as one even, upright stack, or the reason why they are none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medseg_core.errors import MedsegError
from medseg_core.grid import Grid

UNEVEN = 0.1  # how far from its even place a slice may lie, in gaps; a missing one moves another by 0.25 and more
ROUNDED_MM = 0.1  # ... or in mm, up to 0.2 gaps: scanners that round positions to a tenth of a millimetre
TILT_DEG = 0.1  # half a millimetre over 300 mm; gantries are tilted by half degrees and more
ALIKE = 1e-4  # largest difference between the axes of two slices, in pixels per pixel


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice:
    """Where one slice lies.

    Args:
        name: what messages call it.
        shape: pixels along X and Y.
        axes: (2, 3) RAS mm from a pixel to the next along X and along Y, perpendicular.
        origin: (3,) RAS mm, the centre of the first pixel.
        thickness: mm, above 0; the extent along Z of a slice that is alone.
    """

    name: str
    shape: tuple[int, int]
    axes: np.ndarray
    origin: np.ndarray
    thickness: float


def stacked(slices: Sequence[Slice]) -> tuple[np.ndarray, Grid]:
    """The order of slices along their normal X x Y, and the grid they make.

    The first and the last slice lie where they say. Between them a slice may lie 0.1 gaps off its even place, or 0.1 mm
    where that is more (at most 0.2 gaps), and 0.1 degrees or 0.1 mm aside; the positions of real PET scans waver by
    0.03 gaps.

    Args:
        slices: at least one, in any order; no two at one place.

    Raises:
        MedsegError: slices that differ in shape, direction or pixel size; that are missing or spaced unevenly; or that
            are not stacked along their normal (gantry tilt).
    """
    _check_alike(slices)
    normal = np.cross(*slices[0].axes)
    normal /= np.linalg.norm(normal)
    heights = np.array([each.origin @ normal for each in slices])
    order = np.argsort(heights, kind="stable")
    slices, heights = [slices[i] for i in order], heights[order]
    step = slices[0].thickness
    if len(slices) > 1:
        _check_upright(slices, heights, normal)
        _check_even(slices, heights)
        step = (heights[-1] - heights[0]) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3] = np.column_stack([*slices[0].axes, step * normal, slices[0].origin]) + 0.0  # no -0.0
    return order, Grid((*slices[0].shape, len(slices)), affine)


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    size = np.linalg.norm(first.axes, axis=1).min()
    for each in slices:
        if each.shape != first.shape:
            what, one, other = "shape", first.shape, each.shape
        elif np.abs(each.axes - first.axes).max() > ALIKE * size:
            what = "direction or pixel size (RAS mm from pixel to pixel)"
            one, other = first.axes.round(4).tolist(), each.axes.round(4).tolist()
        else:
            continue
        raise MedsegError(
            f"slices differ in {what}: {one} in {first.name}, {other} in {each.name}; "
            "put those of one kind into a folder of their own"
        )


def _check_upright(slices: Sequence[Slice], heights: np.ndarray, normal: np.ndarray) -> None:
    rise = heights - heights[0]
    away = np.array([each.origin - slices[0].origin for each in slices])
    aside = np.linalg.norm(away - rise[:, None] * normal, axis=1)
    beyond = aside - np.maximum(ROUNDED_MM, rise * math.tan(math.radians(TILT_DEG)))
    worst = int(beyond.argmax())
    if beyond[worst] > 0:
        raise MedsegError(
            f"slices are not stacked upright: {slices[worst].name} lies {aside[worst]:.2f} mm aside and "
            f"{rise[worst]:.2f} mm above {slices[0].name}, which is a tilt of "
            f"{math.degrees(math.atan2(aside[worst], rise[worst])):.2f} degrees (as of a gantry); "
            "convert them with dcm2niix, which straightens them"
        )


def _check_even(slices: Sequence[Slice], heights: np.ndarray) -> None:
    gaps = np.diff(heights)
    off = np.abs(heights - np.linspace(heights[0], heights[-1], len(heights))).max()
    if off <= max(UNEVEN * gaps.mean(), min(ROUNDED_MM, 2 * UNEVEN * gaps.mean())):
        return
    usual = float(np.quantile(gaps, 0.5, method="lower"))
    worst = int(np.abs(gaps - usual).argmax())
    below, above = list(pairwise(slices))[worst]
    missing = round(gaps[worst] / usual) - 1 if usual > 0 else 0
    fix = f"{missing} missing there: export the series again" if missing > 0 else "take out what does not belong"
    raise MedsegError(
        f"slices are not evenly spaced: {gaps[worst]:.2f} mm from {below.name} at {heights[worst]:.2f} mm to "
        f"{above.name} at {heights[worst + 1]:.2f} mm, {usual:.2f} mm elsewhere; {fix}"
    )
