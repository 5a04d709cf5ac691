"""What a refinement changed: a map in mm, numbers of the case, and whether it went too far to be believed.

Axes: X Y Z, voxels in the file's own order.

The distance of a changed voxel is that of its centre to the nearest centre on the side that lacks it: of an added voxel
to the input, of a removed one to what is left. So a branch that is lost counts with its length, though it may be one
voxel thick, and swapping input and result swaps the signs and nothing else. A voxel beside the surface has the spacing
of its axis.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from scipy.ndimage import minimum

from medseg_core.errors import MedsegError
from medseg_core.masks import components
from medseg_core.nearest import distances
from medseg_near.shapes import box_of

ROUNDING = 1e-6  # of a bound: spacings come from float32 headers
LIMIT = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>%|mm)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Audit:
    """The change of one case.

    Args:
        before_ml, after_ml: volumes.
        change_percent: of the volume, signed; nan where the input is empty.
        added_ml, removed_ml: voxels that only the result has, or only the input.
        added_percent, removed_percent: the same as shares of the input's volume; nan where it is empty.
        num_components_before, num_components_after: parts connected through faces, edges or corners.
        dice: of result and input; nan where both are empty.
        largest_mm, p95_mm, mean_mm: of the changed voxels' distances without sign, 0 where nothing changed. Where one
            side is empty there is no distance, and each voxel counts with the array's diagonal.
        note: "input is empty", "result is empty", "both are empty", or "".
        shape: of the arrays, (X, Y, Z).
        start: the first voxel of `crop_mm` in the array.
        crop_mm: float32, `change_mm` within the box about both.
    """

    before_ml: float
    after_ml: float
    change_percent: float
    added_ml: float
    removed_ml: float
    added_percent: float
    removed_percent: float
    num_components_before: int
    num_components_after: int
    dice: float
    largest_mm: float
    p95_mm: float
    mean_mm: float
    note: str
    shape: tuple[int, int, int]
    start: tuple[int, int, int]
    crop_mm: np.ndarray

    @cached_property
    def change_mm(self) -> np.ndarray:
        """(X, Y, Z) float32: distance in mm, positive where added, negative where removed, 0 where nothing changed."""
        whole = np.zeros(self.shape, np.float32, order="F")
        whole[tuple(slice(i, i + n) for i, n in zip(self.start, self.crop_mm.shape, strict=True))] = self.crop_mm
        return whole

    def as_row(self) -> dict[str, Any]:
        """The numbers and the note by name, for a table; nan is undefined."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("shape", "start", "crop_mm")}


@dataclass(frozen=True)
class Limits:
    """How much may change before a case is left as it was; None is no bound.

    Args:
        percent: of the input's volume, for what is added and for what is removed, each by itself: a net change hides
            a mask that moved.
        mm: the largest distance of a changed voxel.
    """

    percent: float | None = None
    mm: float | None = None


def audit(before: np.ndarray, after: np.ndarray, *, spacing_mm: Sequence[float]) -> Audit:
    """Holds a result against its input.

    Args:
        before, after: (X, Y, Z) bool, on one grid.
        spacing_mm: along X, Y, Z.

    Raises:
        MedsegError: arrays of different shapes, or of another type than bool.
    """
    before, after = np.asarray(before), np.asarray(after)
    if before.shape != after.shape or before.ndim != 3:
        raise MedsegError(f"input of shape {before.shape} and result of {after.shape} must lie on one grid (X, Y, Z)")
    for name, mask in (("input", before), ("result", after)):
        if mask.dtype != bool:
            raise MedsegError(f"the {name} holds {mask.dtype} where a mask is bool; compare it: mask == id")
    edges_mm = np.asarray(spacing_mm, np.float64)
    box = box_of(before | after) or (slice(0, 1),) * 3
    old, new = (np.ascontiguousarray(mask[box]) for mask in (before, after))
    farthest_mm = math.hypot(*(edges_mm * before.shape))
    crop_mm = _distances_mm(new & ~old, old, edges_mm, farthest_mm)
    crop_mm -= _distances_mm(old & ~new, new, edges_mm, farthest_mm)
    sizes_mm = np.abs(crop_mm[old != new]).astype(np.float64)
    return Audit(
        **_volumes(old, new, ml=float(edges_mm.prod()) / 1000),
        num_components_before=int(components(old).max(initial=0)),
        num_components_after=int(components(new).max(initial=0)),
        largest_mm=float(sizes_mm.max(initial=0)),
        p95_mm=float(np.percentile(sizes_mm, 95)) if sizes_mm.size else 0.0,
        mean_mm=float(sizes_mm.mean()) if sizes_mm.size else 0.0,
        shape=before.shape,
        start=tuple(side.start for side in box),
        crop_mm=crop_mm,
    )


def within_reach(
    before: np.ndarray, after: np.ndarray, *, reach_mm: float, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, int]:
    """The connected parts of a result that come near its input somewhere, and how many do not.

    What a model invents lies by itself, as on another bright tube; what it mends holds on to the input. An input that
    is empty has nothing near it: then all parts stay.

    Args:
        before, after: (X, Y, Z) bool, on one grid.
        reach_mm: between the centres of voxels.
        spacing_mm: along X, Y, Z.
    """
    box = box_of(before | after)
    if box is None or not before.any():
        return after, 0
    old, parts = np.ascontiguousarray(before[box]), components(np.ascontiguousarray(after[box]))
    lonely = np.setdiff1d(np.arange(1, parts.max(initial=0) + 1), parts[old])
    away_mm = _distances_mm(np.isin(parts, lonely), old, np.asarray(spacing_mm, np.float64), math.inf)
    far = lonely[minimum(away_mm, parts, lonely) > reach_mm * (1 + ROUNDING)] if lonely.size else lonely
    if not len(far):
        return after, 0
    kept = after.copy(order="K")
    kept[box] &= ~np.isin(parts, far)
    return kept, len(far)


def read_limits(text: str) -> Limits:
    """The bounds of `--max-change`: `20%`, `5mm`, both as `20%,5mm`, or `none`.

    Raises:
        MedsegError: a number without its unit, a unit twice, or something else.
    """
    found: dict[str, float] = {}
    for part in [] if text.strip().lower() == "none" else text.split(","):
        match = LIMIT.fullmatch(part.strip())
        if match is None:
            number = part.strip() if re.fullmatch(r"[\d.]+", part.strip()) else "20"
            fix = f"{number}% of the volume, {number}mm of distance, both as 20%,5mm, or none"
            raise MedsegError(f"max_change must be a number with its unit, got {part.strip()!r}; write {fix}")
        unit = "percent" if match["unit"] == "%" else "mm"
        if unit in found:
            raise MedsegError(f"max_change {text!r} bounds {match['unit']} twice; leave one")
        found[unit] = float(match["number"])
    return Limits(**found)


def flagged(found: Audit, limits: Limits) -> str:
    """Why a case is to be left as it was, in words; "" where it stays within the bounds.

    With any bound, a result that is empty is always too much, and so is one that is drawn where the input is empty:
    there is nothing to measure it by.
    """
    if limits == Limits() or found.before_ml == found.after_ml == 0:
        return ""
    if found.after_ml == 0:
        return f"the result is empty, where the input has {found.before_ml:.3g} ml"
    if found.before_ml == 0:
        return f"the input is empty, where the result has {found.after_ml:.3g} ml"
    reasons = []
    for what in ("added", "removed"):
        percent = getattr(found, f"{what}_percent")
        if limits.percent is not None and percent > limits.percent * (1 + ROUNDING):
            reasons.append(f"{what} {percent:.3g} % of the volume, allowed {limits.percent:g} %")
    if limits.mm is not None and found.largest_mm > limits.mm * (1 + ROUNDING):
        reasons.append(f"changed {found.largest_mm:.3g} mm away, allowed {limits.mm:g} mm")
    return "; ".join(reasons)


def _volumes(old: np.ndarray, new: np.ndarray, *, ml: float) -> dict[str, Any]:
    """What follows from four counts; `ml` of a voxel."""
    num_old, num_new, num_both = (int(np.count_nonzero(mask)) for mask in (old, new, old & new))
    added, removed = num_new - num_both, num_old - num_both

    def percent(num: int) -> float:
        return 100 * num / num_old if num_old else math.nan

    said = {(0, 0): "both are empty", (0, 1): "input is empty", (1, 0): "result is empty"}
    return {
        "before_ml": num_old * ml,
        "after_ml": num_new * ml,
        "change_percent": percent(added - removed),
        "added_ml": added * ml,
        "removed_ml": removed * ml,
        "added_percent": percent(added),
        "removed_percent": percent(removed),
        "dice": 2 * num_both / (num_old + num_new) if num_old + num_new else math.nan,
        "note": said.get((min(num_old, 1), min(num_new, 1)), ""),
    }


def _distances_mm(changed: np.ndarray, there: np.ndarray, edges_mm: np.ndarray, farthest_mm: float) -> np.ndarray:
    """float32: of each changed voxel the distance to the nearest of `there`, 0 elsewhere."""
    found = np.zeros(changed.shape, np.float32)
    points = np.flatnonzero(changed)
    if points.size:
        others = np.flatnonzero(rim(there))
        found.flat[points] = distances(points, others, changed.shape, edges_mm) if others.size else farthest_mm
    return found


def rim(mask: np.ndarray) -> np.ndarray:
    """The voxels with a face on the outside; the nearest one of a mask is always among them."""
    inner = mask.copy()
    for axis in range(3):
        along = np.moveaxis(mask, axis, 0)
        within = np.moveaxis(inner, axis, 0)
        within[1:] &= along[:-1]
        within[:-1] &= along[1:]
        within[0] = within[-1] = False
    return mask & ~inner
