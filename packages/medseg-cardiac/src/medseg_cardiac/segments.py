"""The 17 segments of the left ventricle (Cerqueira et al., Circulation 2002).

Seen from the apex with the septum on the left, ids run against the clock from the anterior wall: 1-6 basal, 7-12 mid,
13-16 apical (four of 90 degrees), 17 the cap beyond the cavity. Anterior is the middle of segments 1, 7 and 13; the
septum is where 2 meets 3 and 8 meets 9, and the middle of 14.
"""

import logging
import math

import numpy as np
from scipy import ndimage

from medseg_cardiac.orientation import Directions
from medseg_core.errors import MedsegError

NUM_SEGMENTS = 17
CAP = 17
PINHOLES = 0.01  # of the wall's area: a smaller hole is no cavity
_SIXTHS = ("anterior", "anteroseptal", "inferoseptal", "inferior", "inferolateral", "anterolateral")
_QUARTERS = ("anterior", "septal", "inferior", "lateral")
SEGMENTS: dict[int, str] = dict(
    enumerate(
        (
            *(f"{level} {wall}" for level in ("basal", "mid") for wall in _SIXTHS),
            *(f"apical {wall}" for wall in _QUARTERS),
            "apex",
        ),
        1,
    )
)

log = logging.getLogger(__name__)


def aha_segments(
    myo: np.ndarray, *, directions: Directions, apex_first: bool, spacing_mm: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """The segment of each voxel of the myocardium, 0 elsewhere: (S, H, W) uint8.

    The slices from the first to the last one that holds myocardium are cut into thirds by their middles: one slice is
    mid, two are basal and apical; they are taken to be equally far apart. The cap, 17, is the most apical slice where
    that has no cavity, and is not counted in the thirds; without such a slice 17 is absent, and the log says so.

    Args:
        myo: (S, H, W), bool or 0 and 1.
        directions: the same for all slices, as they are parallel.
        apex_first: whether slice 0 is the apical end; `base_first` finds it.
        spacing_mm: along H and W; only their ratio matters.

    Raises:
        MedsegError: no (S, H, W), or nothing marked.
    """
    walls = marked(myo, "the myocardium")
    levels = _levels(walls, apex_first)
    segments = np.zeros(walls.shape, np.uint8)
    for index, level in levels.items():
        wall = walls[index]
        if level == CAP:
            segments[index][wall] = CAP
            continue
        deg = turned_deg(np.argwhere(wall) - centre_of(wall), directions, spacing_mm)
        first, num = ((1, 6), (7, 6), (13, 4))[level]
        width = 360 / num
        segments[index][wall] = first + np.floor((deg + width / 2) / width).astype(int) % num
    return segments


def _levels(walls: np.ndarray, apex_first: bool) -> dict[int, int]:
    """Slice -> 0 basal, 1 mid, 2 apical, or CAP; slices without myocardium are left out."""
    outlined = np.flatnonzero(walls.any(axis=(1, 2)))
    along = list(range(outlined[0], outlined[-1] + 1))  # from base to apex
    if apex_first:
        along.reverse()
    levels: dict[int, int] = {}
    if len(along) > 1 and not has_cavity(walls[along[-1]]):
        levels[along.pop()] = CAP
    else:
        log.debug("no slice beyond the cavity: segment %d (%s) is absent", CAP, SEGMENTS[CAP])
    for place, index in enumerate(along):
        if walls[index].any():
            levels[index] = 3 * (2 * place + 1) // (2 * len(along))
    return levels


def turned_deg(steps: np.ndarray, directions: Directions, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Steps (..., 2) from the centre, in pixels -> degrees from anterior by way of the septum, in [0, 360)."""
    steps = np.asarray(steps, float) * spacing_mm
    return np.degrees(np.arctan2(steps @ directions.septum, steps @ directions.anterior)) % 360


def marked(mask: np.ndarray, name: str, *, may_be_empty: bool = False) -> np.ndarray:
    """(S, H, W) bool: above 0.

    Raises:
        MedsegError: another number of axes, NaN, or nothing marked.
    """
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise MedsegError(f"{name} has shape {mask.shape}, not (slices, H, W); stack the slices along axis 0")
    if np.issubdtype(mask.dtype, np.floating) and np.isnan(mask).any():
        raise MedsegError(f"{name} holds {np.isnan(mask).sum()} NaN; write it again as 0 and 1")
    mask = mask > 0
    if not (mask.any() or may_be_empty):
        raise MedsegError(f"{name} is empty in all {len(mask)} slices; outline it in at least one")
    return mask


def has_cavity(wall: np.ndarray) -> bool:
    """Whether an (H, W) myocardium goes round something: closed, or open at a valve."""
    if cavity_of(wall).any():
        return True
    h, w = np.round(_centre_of_circle(wall)).astype(int)
    inside = 0 <= h < wall.shape[0] and 0 <= w < wall.shape[1]
    return not (inside and wall[h, w])


def cavity_of(wall: np.ndarray) -> np.ndarray:
    """(H, W) bool: what a closed myocardium encloses; nothing where it is open or has no more than pinholes."""
    cavity = ndimage.binary_fill_holes(wall) & ~wall
    return cavity if cavity.sum() >= PINHOLES * wall.sum() else np.zeros_like(cavity)


def centre_of(wall: np.ndarray) -> np.ndarray:
    """(2,) the centre (h, w) of the ventricle, in pixels, of an (H, W) myocardium that is not empty.

    That of the cavity; of an open wall, the centre of the circle nearest to it; of a wall without cavity, its own.
    """
    cavity = cavity_of(wall)
    if cavity.any():
        return np.argwhere(cavity).mean(axis=0)
    return _centre_of_circle(wall) if has_cavity(wall) else np.argwhere(wall).mean(axis=0)


def _centre_of_circle(wall: np.ndarray) -> np.ndarray:
    """The algebraic circle through the pixels (Kasa, 1976); their mean where they lie on a line."""
    points = np.argwhere(wall).astype(float)
    mean = points.mean(axis=0)
    steps = points - mean
    design = np.column_stack([2 * steps, np.ones(len(steps))])
    solution, _, rank, _ = np.linalg.lstsq(design, (steps**2).sum(axis=1), rcond=None)
    away = math.hypot(*solution[:2])
    return mean + solution[:2] if rank == 3 and away < 2 * np.abs(steps).max() else mean
