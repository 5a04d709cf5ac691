"""Distances between the surfaces of two label maps: all structures from one walk along the boundaries.

With A the surface of the mask, B that of the label, both as points of some weight, and d(a, B) the distance from a to
the nearest point of B:

- `hd`: the largest of all d(a, B) and d(b, A), the Hausdorff distance.
- `hd95`: the larger of the 95th percentile of d(a, B) and that of d(b, A), as in MONAI and surface-distance. MedPy's is
  another number, the percentile of both sets put together.
- `assd`: the weighted mean of d(a, B) and d(b, A) put together, as in MONAI (`symmetric=True`) and MedPy 0.5.
- `nsd`: the share of both surfaces' weight that lies within the tolerance (surface Dice; Nikolov et al., 2021).

Two conventions say where a surface lies; their numbers differ, so name the convention beside them. What lies outside
the array is background in both.

- "voxel" (MONAI, MedPy, SciPy): the centres of the voxels that `mask ^ binary_erosion(mask)` leaves, those with another
  id behind one of their faces. Each weighs 1. Percentiles are interpolated linearly.
- "surface" (DeepMind's surface-distance): the corners at which voxels in and out of the structure meet. Each weighs the
  area of the marching-cubes surface around it (in 2D, the length of the contour), and percentiles go by weight.

In 2D a pixel has four neighbours; in a 3D array of one plane it has six, two of which lie outside. For empty sides see
the table in `medseg_core.metrics`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import permutations, product

import numpy as np
from numba import njit

from medseg_core.errors import MedsegError, meant
from medseg_core.masks import LARGEST_ID, along_memory, in_fortran_order
from medseg_core.metrics import checked_ids, checked_pair
from medseg_core.nearest import distances

CONVENTIONS = ("voxel", "surface")
POLICIES = ("undefined", "worst")
MEASURES = ("hd", "hd95", "assd", "nsd")
PIECE = 512  # voxels looked at together
MOST_POINTS = 2**23  # of a side held at once, unless one structure has more: what noise needs is bounded by it
ROUNDING = 1e-6  # of the tolerance: spacings come from float32 headers, and 30 x 0.1 mm is meant to lie within 3 mm

# Marching cubes (Lorensen and Cline, 1987) with edges cut in the middle: which of the eight voxels around a corner are
# in the structure (bit 4x + 2y + z) -> normals of the surface, their lengths its area, in eighths of a voxel's faces.
# Turned, mirrored and inverted these are all 256 cases, as surface-distance has them.
SURFACES = {
    0b00000001: [(1, 1, 1)],
    0b00000011: [(4, 4, 0)],
    0b00000110: [(2, 2, 2)],
    0b00000111: [(4, 0, 0), (3, 3, 3)],
    0b00001111: [(8, 0, 0)],
    0b00010110: [(3, 3, 3)],
    0b00010111: [(6, 6, 6)],
    0b00011000: [(2, 2, 2)],
    0b00011001: [(0, 4, 4), (1, 1, 1)],
    0b00011011: [(0, 2, 2), (2, 0, 2), (4, 4, 4)],
    0b00011110: [(4, 0, 0), (4, 4, 4)],
    0b00111100: [(8, 8, 0)],
    0b01101001: [(4, 4, 4)],
}

_Points = tuple[np.ndarray, np.ndarray]  # (P,) ascending indices of the flat array, (P,) which case of SURFACES each is


def surface_metrics(
    mask: np.ndarray,
    label: np.ndarray,
    *,
    ids: Iterable[int],
    spacing: Sequence[float],
    tolerance_mm: float | Sequence[float] = 3.0,
    percentile: float = 95.0,
    convention: str = "voxel",
    empty: str = "undefined",
) -> dict[str, np.ndarray]:
    """Surface distances of each structure; the text of this module defines them.

    Args:
        mask, label: (X, Y, Z) or (H, W) predicted and true ids, whole numbers from 0 to 65535; types and memory orders
            may differ.
        ids: structures, (L,); 0 is not one.
        spacing: voxel edges in mm, one per axis of the array; any other unit is then that of the distances.
        tolerance_mm: of `nsd`, in the unit of the spacing; one for all structures, or one for each of `ids`.
        percentile: what `hd95` takes instead of 95.
        convention: "voxel" or "surface".
        empty: the distances of a structure on one side only: "undefined" (nan) or "worst" (the array's diagonal).

    Returns:
        `hd`, `hd95`, `assd` in the unit of the spacing and `nsd` in [0, 1], each (L,) float64 in the order of `ids`.
        A structure on one side only has nsd 0 and distances by `empty`, one on neither side nan.

    Raises:
        MedsegError: arrays of different shape, not label maps, or a spacing, tolerance, percentile, id or convention
            that does not exist.
    """
    mask, label = checked_pair(mask, label)
    chosen = checked_ids(ids)
    tolerances = np.asarray(tolerance_mm, np.float64)
    _check(mask.ndim, chosen, spacing, tolerances, percentile, convention, empty)
    tolerances = np.broadcast_to(tolerances, len(chosen))
    edges = np.asarray(spacing[::-1] if in_fortran_order(mask) else spacing, np.float64)
    edges = np.concatenate([np.ones(3 - len(edges)), edges])
    by_area = convention == "surface"
    weights = _areas(edges) if by_area else np.ones(1)
    is_plane = mask.ndim == 2
    framed = [_framed(view, is_plane=is_plane) for view in along_memory(mask, label)]
    grid = (1 if is_plane else framed[0].shape[0], *framed[0].shape[1:])
    rank = _rank_by_weight if by_area else _rank
    farthest = math.hypot(*np.multiply(mask.shape, spacing)) if empty == "worst" else math.nan
    found = np.full((len(chosen), len(MEASURES)), np.nan)
    for n, (a, a_cases), (b, b_cases) in _surfaces_of_both(framed, chosen, by_area=by_area, is_plane=is_plane):
        if len(a) and len(b):
            gaps = distances(a, b, grid, edges), distances(b, a, grid, edges)
            found[n] = _measures(gaps, (weights[a_cases], weights[b_cases]), tolerances[n], percentile, rank)
        elif len(a) or len(b):
            found[n] = farthest, farthest, farthest, 0.0
    return dict(zip(MEASURES, found.T.copy(), strict=True))


def _check(
    num_axes: int,
    ids: np.ndarray,
    spacing: Sequence[float],
    tolerances: np.ndarray,
    percentile: float,
    convention: str,
    empty: str,
) -> None:
    if convention not in CONVENTIONS:
        raise MedsegError(f"convention {convention!r} is not one of {CONVENTIONS}{meant(convention, CONVENTIONS)}")
    if empty not in POLICIES:
        raise MedsegError(f"empty {empty!r} is not one of {POLICIES}{meant(empty, POLICIES)}")
    if (ids == 0).any():
        raise MedsegError("id 0 is the background, which has no surface of its own; leave it out of ids")
    if len(spacing) != num_axes or not all(0 < edge < np.inf for edge in spacing):
        raise MedsegError(f"spacing {tuple(spacing)} must be {num_axes} positive lengths, one per axis of the array")
    if tolerances.shape not in ((), ids.shape):
        raise MedsegError(f"{tolerances.size} tolerances for {len(ids)} structures; give one for all, or one for each")
    if not (tolerances >= 0).all():
        raise MedsegError(f"tolerance_mm={tolerances[~(tolerances >= 0)][0]:g} must be 0 or more")
    if not 0 <= percentile <= 100:
        raise MedsegError(f"percentile={percentile} must lie between 0 and 100; take 95 for HD95")


def _measures(
    gaps: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray],
    tolerance: float,
    percentile: float,
    rank: Callable[[np.ndarray, np.ndarray, float], float],
) -> tuple[float, ...]:
    """hd, hd95, assd and nsd of the distances from one surface to the other and back."""
    sums = np.array([_sums(gap, weight, tolerance * (1 + ROUNDING)) for gap, weight in zip(gaps, weights, strict=True)])
    farthest = max(rank(gap, weight, percentile) for gap, weight in zip(gaps, weights, strict=True))
    total, length, within = sums[:, 1:].sum(axis=0)
    return sums[:, 0].max(), farthest, length / total, within / total


@njit(nogil=True, cache=True)
def _sums(gap, weight, tolerance):
    """The largest distance; the weight, the weight times distance and the weight within the tolerance, summed."""
    largest = total = length = within = 0.0
    for p in range(len(gap)):
        largest = max(largest, gap[p])
        total += weight[p]
        length += weight[p] * gap[p]
        within += weight[p] * (gap[p] <= tolerance)
    return largest, total, length, within


def _rank(distance: np.ndarray, _weight: np.ndarray, percentile: float) -> float:
    return float(np.percentile(distance, percentile))


def _rank_by_weight(distance: np.ndarray, weight: np.ndarray, percentile: float) -> float:
    """The smallest distance within which that share of the weight lies, give or take what the sums round."""
    order = np.argsort(distance)
    share = np.cumsum(weight[order]) / weight.sum()
    enough = percentile / 100 - 4 * len(order) * np.finfo(np.float64).eps
    return float(distance[order[min(np.searchsorted(share, enough), len(order) - 1)]])


def _surfaces_of_both(
    framed: Sequence[np.ndarray], wanted: np.ndarray, *, by_area: bool, is_plane: bool
) -> Iterator[tuple[int, _Points, _Points]]:
    """The place of each wanted id among them and its surfaces on both sides, in any order; arguments as `_surfaces`."""
    waiting = [np.arange(len(wanted))]
    while waiting:
        places = waiting.pop()
        sides = [_surfaces(side, wanted[places], by_area=by_area, is_plane=is_plane) for side in framed]
        if None in sides:
            waiting += np.array_split(places, 2)
        else:
            yield from zip(places.tolist(), *sides, strict=True)


def _surfaces(framed: np.ndarray, wanted: np.ndarray, *, by_area: bool, is_plane: bool) -> list[_Points] | None:
    """The surface of each wanted id; None where there are several and they have more than MOST_POINTS together.

    Args:
        framed: as `_framed` gives it.
        by_area: corners, else edge voxels, whose case is 0.
    """
    is_wanted = np.zeros(LARGEST_ID + 1, bool)
    is_wanted[wanted] = True
    plane, row = framed.shape[1] * framed.shape[2], framed.shape[2]
    if by_area:
        first, last = plane if is_plane else 0, framed.size - plane - row - 1
        around = np.array([4 * [0], 4 * [plane]]).ravel() + np.tile([0, 1, row, row + 1], 2)
    else:
        first, last, around = plane, framed.size - plane, np.array([1, -1, row, -row, plane, -plane])
    most = MOST_POINTS if len(wanted) > 1 else len(around) * framed.size
    points, found, cases = _walk(framed.ravel(), first, last, around, is_wanted, most)
    if len(points) > most:
        return None
    starts, points, cases = _sorted_by_id(points, found, cases)
    if is_plane:
        points -= plane  # walked was the middle one of three; on the grid it is the only one
    parts = (slice(starts[i], starts[i + 1]) for i in wanted.tolist())
    return [(points[part], cases[part]) for part in parts]


def _framed(view: np.ndarray, *, is_plane: bool) -> np.ndarray:
    """The same ids, contiguous, with background around; a plane has itself on both sides: nothing ends there."""
    framed = np.zeros([n + 2 for n in view.shape], np.uint8 if view.itemsize == 1 else np.uint16)
    framed[slice(None) if is_plane else slice(1, -1), 1:-1, 1:-1] = view
    return framed


def _areas(edges: np.ndarray) -> np.ndarray:
    """(256,) area of the surface around a corner, by which of its eight voxels are in the structure.

    Args:
        edges: of the three axes, in mm; a picture is a plane 1 mm thick, so its areas are lengths.
    """
    faces = edges.prod() / edges / 8
    areas = np.zeros(256)
    corners = np.array(list(product((0, 1), repeat=3)))
    for case, normals in SURFACES.items():
        inside = corners[[bool(case >> bit & 1) for bit in range(8)]]
        for axes in map(list, permutations(range(3))):
            area = np.linalg.norm(np.array(normals)[:, axes] * faces, axis=1).sum()
            for mirrored in corners:
                turned = int((1 << ((inside[:, axes] ^ mirrored) @ (4, 2, 1))).sum())
                areas[turned] = areas[255 - turned] = area
    return areas


@njit(nogil=True, cache=True)
def _walk(flat, first, last, around, is_wanted, most):
    """Index, id and case of every surface point of wanted ids among flat[first:last], in ascending order.

    Args:
        most: the walk ends where it has found more than this.
        around: steps to the voxels that decide: the six neighbours of an edge voxel, or the eight around a corner, by
            bit of SURFACES, and then the case is which of them have the id.
    """
    marks = np.empty(PIECE, flat.dtype)
    words, lanes = marks.view(np.uint64), 8 // flat.itemsize
    points, found, cases, num = *_room(16 * PIECE), 0
    for start in range(first, last, PIECE):
        if num > most:
            break
        if not _mark(flat, start, min(PIECE, last - start), around, marks):
            continue
        if num + 8 * PIECE > len(points):
            points, found, cases = _wider(points, found, cases)
        for w in range(len(words)):
            if words[w]:
                for k in range(w * lanes, (w + 1) * lanes):
                    if marks[k]:
                        num = _put(flat, start + k, around, is_wanted, points, found, cases, num)
    return points[:num], found[:num], cases[:num]


@njit(nogil=True, cache=True)
def _mark(flat, start, num, around, marks):
    """Marks the points around which not all ids are the same, without a branch a voxel; False where none is."""
    marks[:] = 0
    here = flat[start : start + num]
    for step in around:
        there = flat[start + step : start + step + num]
        for k in range(num):
            marks[k] |= here[k] ^ there[k]
    some = marks[0]
    for k in range(PIECE):
        some |= marks[k]
    return some != 0


@njit(nogil=True, cache=True)
def _put(flat, index, around, is_wanted, points, found, cases, num):
    """Puts the point down: an edge voxel for its id, a corner once for each wanted id among the voxels around it."""
    if len(around) < 8:
        points[num], found[num], cases[num] = index, flat[index], 0
        return num + is_wanted[flat[index]]
    for first in range(8):
        v = flat[index + around[first]]
        if not is_wanted[v]:
            continue
        case = 0
        for bit in range(8):
            if flat[index + around[bit]] == v:
                case += 1 << bit
        if case % (1 << first) == 0:
            points[num], found[num], cases[num] = index, v, case
            num += 1
    return num


@njit(nogil=True, cache=True)
def _room(num):
    return np.empty(num, np.int64), np.empty(num, np.uint16), np.empty(num, np.uint8)


@njit(nogil=True, cache=True)
def _wider(points, found, cases):
    more = _room(2 * len(points))
    more[0][: len(points)], more[1][: len(points)], more[2][: len(points)] = points, found, cases
    return more


@njit(nogil=True, cache=True)
def _sorted_by_id(points, found, cases):
    """Where each id begins (65537,), and the points and cases by id, each in the order they came in."""
    starts = np.zeros(LARGEST_ID + 2, np.int64)
    for p in range(len(points)):
        starts[found[p] + 1] += 1
    starts = np.cumsum(starts)
    free, by_id, cases_by_id = starts.copy(), np.empty_like(points), np.empty_like(cases)
    for p in range(len(points)):
        at = free[found[p]]
        by_id[at], cases_by_id[at] = points[p], cases[p]
        free[found[p]] += 1
    return starts, by_id, cases_by_id
