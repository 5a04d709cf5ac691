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

from collections.abc import Callable, Iterable, Sequence
from itertools import permutations, product

import numpy as np
from numba import njit
from scipy.spatial import cKDTree

from medseg_core.errors import MedsegError, meant
from medseg_core.masks import LARGEST_ID, along_memory, in_fortran_order
from medseg_core.metrics import checked_ids, checked_pair

CONVENTIONS = ("voxel", "surface")
MEASURES = ("hd", "hd95", "assd", "nsd")
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


def surface_metrics(
    mask: np.ndarray,
    label: np.ndarray,
    *,
    ids: Iterable[int],
    spacing: Sequence[float],
    tolerance_mm: float = 3.0,
    percentile: float = 95.0,
    convention: str = "voxel",
) -> dict[str, np.ndarray]:
    """Surface distances of each structure; the text of this module defines them.

    Args:
        mask, label: (X, Y, Z) or (H, W) predicted and true ids, whole numbers from 0 to 65535; types and memory orders
            may differ.
        ids: structures, (L,); 0 is not one.
        spacing: voxel edges in mm, one per axis of the array; any other unit is then that of the distances.
        tolerance_mm: of `nsd`, in the unit of the spacing.
        percentile: what `hd95` takes instead of 95.
        convention: "voxel" or "surface".

    Returns:
        `hd`, `hd95`, `assd` in the unit of the spacing and `nsd` in [0, 1], each (L,) float64 in the order of `ids`.
        A structure on one side only has nan distances and nsd 0, one on neither side nan.

    Raises:
        MedsegError: arrays of different shape, not label maps, or a spacing, tolerance, percentile, id or convention
            that does not exist.
    """
    mask, label = checked_pair(mask, label)
    chosen = checked_ids(ids)
    _check(mask.ndim, chosen, spacing, tolerance_mm, percentile, convention)
    edges = np.asarray(spacing, np.float64)
    by_area = convention == "surface"
    surfaces = [_surfaces(side, chosen, edges if by_area else None) for side in (mask, label)]
    grid = tuple(n + 1 for n in mask.shape) if by_area else mask.shape
    rank = _rank_by_weight if by_area else _rank
    found = np.full((len(chosen), len(MEASURES)), np.nan)
    for row, i in zip(found, chosen.tolist(), strict=True):
        a, b = surfaces[0][i], surfaces[1][i]
        if len(a[0]) and len(b[0]):
            distances = _distances(a[0], b[0], grid, edges), _distances(b[0], a[0], grid, edges)
            row[:] = _measures(distances, (a[1], b[1]), tolerance_mm, percentile, rank)
        elif len(a[0]) or len(b[0]):
            row[MEASURES.index("nsd")] = 0.0
    return dict(zip(MEASURES, found.T.copy(), strict=True))


def _check(
    num_axes: int, ids: np.ndarray, spacing: Sequence[float], tolerance: float, percentile: float, convention: str
) -> None:
    if convention not in CONVENTIONS:
        raise MedsegError(f"convention {convention!r} is not one of {CONVENTIONS}{meant(convention, CONVENTIONS)}")
    if (ids == 0).any():
        raise MedsegError("id 0 is the background, which has no surface of its own; leave it out of ids")
    if len(spacing) != num_axes or not all(0 < edge < np.inf for edge in spacing):
        raise MedsegError(f"spacing {tuple(spacing)} must be {num_axes} positive lengths, one per axis of the array")
    if not tolerance >= 0:
        raise MedsegError(f"tolerance_mm={tolerance} must be 0 or more")
    if not 0 <= percentile <= 100:
        raise MedsegError(f"percentile={percentile} must lie between 0 and 100; take 95 for HD95")


def _measures(
    distances: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray],
    tolerance: float,
    percentile: float,
    rank: Callable[[np.ndarray, np.ndarray, float], float],
) -> tuple[float, ...]:
    """hd, hd95, assd and nsd of the distances from one surface to the other and back."""
    sides = list(zip(distances, weights, strict=True))
    total = sum(weight.sum() for weight in weights)
    within = tolerance * (1 + ROUNDING)
    return (
        max(distance.max() for distance in distances),
        max(rank(distance, weight, percentile) for distance, weight in sides),
        sum(distance @ weight for distance, weight in sides) / total,
        sum(weight[distance <= within].sum() for distance, weight in sides) / total,
    )


def _rank(distance: np.ndarray, _weight: np.ndarray, percentile: float) -> float:
    return float(np.percentile(distance, percentile))


def _rank_by_weight(distance: np.ndarray, weight: np.ndarray, percentile: float) -> float:
    """The smallest distance within which that share of the weight lies."""
    order = np.argsort(distance)
    share = np.cumsum(weight[order]) / weight.sum()
    return float(distance[order[min(np.searchsorted(share, percentile / 100), len(order) - 1)]])


def _distances(points: np.ndarray, others: np.ndarray, grid: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """From each point to the nearest other one, all as ascending C-order indices; a point in both costs no search."""
    distances = np.zeros(len(points))
    nearest = np.minimum(np.searchsorted(others, points), len(others) - 1)
    apart = others[nearest] != points
    if apart.any():
        there, here = (np.stack(np.unravel_index(flat, grid), axis=1) * spacing for flat in (others, points[apart]))
        distances[apart] = cKDTree(there, leafsize=32, compact_nodes=False, balanced_tree=False).query(here)[0]
    return distances


def _surfaces(
    ids: np.ndarray, wanted: np.ndarray, spacing: np.ndarray | None
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The surface of each wanted id as points, (P,) ascending C-order indices, and their weights (P,).

    Without a spacing these are edge voxels of weight 1, with one corners by their area.
    """
    (view,) = along_memory(ids)
    turned, plane = in_fortran_order(ids), ids.ndim == 2
    is_wanted = np.zeros(LARGEST_ID + 1, bool)
    is_wanted[wanted] = True
    walk = _edge_voxels if spacing is None else _corners
    num = np.zeros(LARGEST_ID + 2, np.int64)
    walk(view, is_wanted, turned, plane, num[1:], np.empty(0, np.int64), np.empty(0, np.uint8))
    starts = np.cumsum(num)
    points, cases = np.empty(starts[-1], np.int64), np.zeros(starts[-1], np.uint8)
    walk(view, is_wanted, turned, plane, starts.copy(), points, cases)
    weights = np.ones(256) if spacing is None else _areas(spacing[::-1] if turned else spacing)
    surfaces = {}
    for i in wanted.tolist():
        part = slice(starts[i], starts[i + 1])
        order = np.argsort(points[part], kind="stable")
        surfaces[i] = points[part][order], weights[cases[part][order]]
    return surfaces


def _areas(spacing: np.ndarray) -> np.ndarray:
    """(256,) area of the surface around a corner, by which of its eight voxels are in the structure.

    Args:
        spacing: of the three axes, in mm; of the two of a picture the areas are lengths, as of a plane 1 mm thick.
    """
    spacing = np.concatenate([np.ones(3 - len(spacing)), spacing])
    faces = spacing.prod() / spacing / 8
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
def _edge_voxels(ids, is_wanted, turned, plane, free, points, _cases):
    """Puts the C-order index of each wanted edge voxel into `points` at `free[id]`, which moves on; empty, it counts.

    Args:
        ids: (X, Y, Z), or (Z, Y, X) where `turned`.
        plane: axis 0 is not of the array: nothing lies beyond it.
    """
    n0, n1, n2 = ids.shape
    beyond = np.zeros(n2, ids.dtype)
    for i in range(n0):
        for j in range(n1):
            row = ids[i, j]
            below = row if plane else _row(ids, i - 1, j, beyond)
            above = row if plane else _row(ids, i + 1, j, beyond)
            before, after = _row(ids, i, j - 1, beyond), _row(ids, i, j + 1, beyond)
            for k in range(n2):
                v = row[k]
                if v == 0 or not is_wanted[v]:
                    continue
                within = 0 < k < n2 - 1 and row[k - 1] == v == row[k + 1]
                if within and below[k] == v == above[k] and before[k] == v == after[k]:
                    continue
                if len(points):
                    points[free[v]] = (k * n1 + j) * n0 + i if turned else (i * n1 + j) * n2 + k
                free[v] += 1


@njit(nogil=True, cache=True)
def _corners(ids, is_wanted, turned, plane, free, points, cases):
    """As `_edge_voxels`, for the corners of wanted ids, of which an array of n voxels an axis has n + 1.

    Puts into `cases` which of the voxels around the corner have the id, as in SURFACES.
    """
    n0, n1, n2 = ids.shape
    m0, m1, m2 = (1 if plane else n0 + 1), n1 + 1, n2 + 1
    zero = ids.dtype.type(0)
    beyond = np.zeros(n2, ids.dtype)
    around = np.zeros(8, ids.dtype)
    for i in range(m0):
        for j in range(m1):
            lower = i if plane else i - 1
            a, b = _row(ids, lower, j - 1, beyond), _row(ids, lower, j, beyond)
            c, d = _row(ids, i, j - 1, beyond), _row(ids, i, j, beyond)
            a0 = b0 = c0 = d0 = zero
            for k in range(m2):
                a1, b1, c1, d1 = (a[k], b[k], c[k], d[k]) if k < n2 else (zero, zero, zero, zero)
                if not (a0 == b0 == c0 == d0 == a1 == b1 == c1 == d1):
                    around[0::2], around[1::2] = (a0, b0, c0, d0), (a1, b1, c1, d1)
                    index = (k * m1 + j) * m0 + i if turned else (i * m1 + j) * m2 + k
                    _put(around, index, is_wanted, free, points, cases)
                a0, b0, c0, d0 = a1, b1, c1, d1


@njit(nogil=True, cache=True)
def _put(around, index, is_wanted, free, points, cases):
    """Puts the corner down once for each of the ids among the eight voxels around it."""
    for first in range(8):
        v = around[first]
        case = 0
        for bit in range(8):
            if around[bit] == v:
                case += 1 << bit
        is_first = case % (1 << first) == 0
        if v != 0 and is_wanted[v] and is_first:
            if len(points):
                points[free[v]] = index
                cases[free[v]] = case
            free[v] += 1


@njit(nogil=True, cache=True)
def _row(ids, i, j, beyond):
    return ids[i, j] if 0 <= i < ids.shape[0] and 0 <= j < ids.shape[1] else beyond
